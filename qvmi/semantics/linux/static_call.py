"""Calls whose target the kernel changes in the code itself: static calls.

References: Linux include/linux/static_call_types.h (``struct static_call_site``, ``struct
static_call_key``), kernel/static_call_inline.c, arch/x86/kernel/static_call.c (``__static_call_transform``).
"""

from struct import Struct
from typing import Final, NamedTuple

from qvmi.addr import Va
from qvmi.memory.address_space import AddressSpace

__all__ = ["ENTRY_SIZE", "StaticCall", "static_calls"]

_SITE: Final = Struct("<ii")
_FLAGS: Final = 3
ENTRY_SIZE: Final = _SITE.size
"""Bytes of one entry."""


class StaticCall(NamedTuple):
    """This is a place of such a call, and the ``struct static_call_key`` that says where it leads."""

    code: int
    key: int


def static_calls(space: AddressSpace, start: Va, size: int) -> list[StaticCall]:
    """These are the entries of a table.

    Args:
        space: the kernel's address space.
        start: of the table.
        size: of it in bytes, to which whoever asks has set a bound.

    Raises:
        MemoryFault: it cannot be read.
    """
    data = space.read(start, size // _SITE.size * _SITE.size)
    return [
        StaticCall(at + code, (at + 4 + key) & ~_FLAGS)
        for at, (code, key) in zip(
            range(start, start + len(data), _SITE.size), _SITE.iter_unpack(data), strict=True
        )
    ]
