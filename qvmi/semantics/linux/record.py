"""Structs of the running kernel, compiled so that one call reads all wanted members at once."""

from collections.abc import Callable
from operator import itemgetter
from struct import Struct, calcsize
from typing import Any, Final

from qvmi.errors import CorruptTable
from qvmi.memory.address_space import AddressSpace

__all__ = ["Reader", "compile_reader"]

_MAX_SPAN: Final = 1 << 16
"""Bytes from the first member to the last; the largest struct read, ``task_struct``, has 10 KiB."""

Reader = Callable[[int], tuple[Any, ...]]
"""Takes a struct's address and returns the wanted members; raises MemoryFault."""


def compile_reader(space: AddressSpace, *members: tuple[int, str]) -> Reader:
    """This makes a reader for members of one struct.

    Args:
        space: where the structs lie.
        members: offset of each in bytes and its format of :mod:`struct`, in the order in which the
            reader is to return them; at least two.

    Raises:
        CorruptTable: members overlap, or lie too far apart: no struct is made like that.
    """
    by_offset = sorted(members)
    layout = "<"
    position = 0
    for offset, form in by_offset:
        if offset < position or offset >= _MAX_SPAN:
            raise CorruptTable("types", f"a member at {offset}, another one up to {position}")
        layout += f"{offset - position}x{form}"
        position = offset + calcsize("<" + form)
    unpack = space.unpacker(Struct(layout))
    if by_offset == list(members):
        return unpack
    arrange = itemgetter(*map(by_offset.index, members))
    return lambda address: arrange(unpack(address))
