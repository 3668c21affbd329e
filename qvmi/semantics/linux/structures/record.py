"""Structs of the running kernel, compiled so that one call reads all wanted members at once."""

from collections.abc import Callable, Iterator
from operator import itemgetter
from struct import Struct, calcsize
from typing import Any, Final

from qvmi.addr import Va
from qvmi.errors import CorruptTable
from qvmi.memory.address_space import AddressSpace

__all__ = ["Reader", "compile_reader", "read_table"]

_MAX_SPAN: Final = 1 << 16
"""Bytes from the first member to the last; the largest struct read, ``task_struct``, has 10 KiB."""

Reader = Callable[[int], tuple[Any, ...]]
"""Takes a struct's address and returns the wanted members; raises MemoryFault."""


def read_table(
    space: AddressSpace, start: Va, count: int, entry: Struct
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """This reads a table at once, and iterates the addresses of its entries and what is in them.

    Args:
        space: where it lies.
        start: of the table.
        count: of its entries, to which whoever asks has set a bound.
        entry: the layout of one.

    Raises:
        MemoryFault: it cannot be read.
    """
    data = space.read(start, count * entry.size)
    return zip(range(start, start + len(data), entry.size), entry.iter_unpack(data), strict=True)


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
