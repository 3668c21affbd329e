"""Rows about the kernel's own code, and about the places from which it is called."""

import msgspec

from qvmi.addr import Va

__all__ = ["CodeChange", "CodePointer"]


class CodePointer(msgspec.Struct, frozen=True, gc=False):
    """This is a place at which the kernel keeps the address of code that it calls.

    Args:
        table: the structure that holds it, such as ``sys_call_table``.
        entry: which of its entries, such as ``59 execve``.
        place: where the address is kept.
        target: the address.
        owner: whose code is there: ``kernel``, a module's name, ``bpf`` and a program's name,
            ``ftrace trampoline``; empty for nobody's.
        symbol: the name of what is there, with the distance from it; empty where there is none.
        problem: why that cannot be right, in words; empty where it can.
        found: the entry's bytes, of a row with a problem; empty where nobody knows the right ones.
        expected: those that should be there instead; empty where nobody knows.
    """

    table: str
    entry: str
    place: Va
    target: Va
    owner: str
    symbol: str
    problem: str = ""
    found: bytes = b""
    expected: bytes = b""


class CodeChange(msgspec.Struct, frozen=True, gc=False):
    """This is a place where the kernel's code is not as it was, or not as it may be.

    Args:
        region: ``kernel``, ``constants`` or a module's name.
        address: of the first byte.
        symbol: the name of what is there, with the distance from it; empty where there is none.
        expected: the bytes that were there at first sight; empty where only the rule is known.
        found: those that are there now.
        site: what the kernel itself changes there, such as ``ftrace``; empty for nothing.
        problem: why that cannot be right, in words.
        is_passing: whether a healthy kernel passes through this, for a moment.
    """

    region: str
    address: Va
    symbol: str
    expected: bytes
    found: bytes
    site: str
    problem: str
    is_passing: bool = False
