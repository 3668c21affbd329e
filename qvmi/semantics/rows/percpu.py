"""Rows about variables that each CPU has for itself."""

import msgspec

from qvmi.addr import Va
from qvmi.symbols.btf_values import Value

__all__ = ["PerCpuValue"]


class PerCpuValue(msgspec.Struct, frozen=True):
    """This is what one CPU's own copy of a variable holds.

    Args:
        cpu: its number.
        address: of the copy.
        type: as C writes it; empty where the kernel does not tell it.
        size: bytes of it: without a type up to the next variable, which may be a few too many.
        value: by its type: a number, a struct's members by name, or a list; a pointer is its
            address. Without a type its bytes in hexadecimal.
    """

    cpu: int
    address: Va
    type: str
    size: int
    value: Value
