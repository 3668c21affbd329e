"""Jumps that the kernel switches on and off: jump labels, by which static keys work.

References: Linux include/linux/jump_label.h (``struct jump_entry``, relative since 5.10 on both
architectures), kernel/jump_label.c, arch/x86/kernel/jump_label.c, arch/arm64/kernel/jump_label.c.
"""

from struct import Struct
from typing import Final, NamedTuple

from qvmi.addr import Va
from qvmi.memory.address_space import AddressSpace

__all__ = ["ENTRY_SIZE", "JumpLabel", "jump_labels"]

_ENTRY: Final = Struct("<iiq")
ENTRY_SIZE: Final = _ENTRY.size
"""Bytes of one entry."""


class JumpLabel(NamedTuple):
    """This is a place of such a jump, and where it leads when it is on."""

    code: int
    target: int


def jump_labels(space: AddressSpace, start: Va, size: int) -> list[JumpLabel]:
    """These are the entries of a table.

    Args:
        space: the kernel's address space.
        start: of the table.
        size: of it in bytes, to which whoever asks has set a bound.

    Raises:
        MemoryFault: it cannot be read.
    """
    data = space.read(start, size // _ENTRY.size * _ENTRY.size)
    return [
        JumpLabel(at + code, at + 4 + target)
        for at, (code, target, _) in zip(
            range(start, start + len(data), _ENTRY.size), _ENTRY.iter_unpack(data), strict=True
        )
    ]
