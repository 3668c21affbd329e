"""Structs of the running kernel, compiled so that one call reads all wanted members at once."""

from collections.abc import Callable, Mapping
from operator import itemgetter
from struct import Struct, calcsize
from typing import Any

from qvmi.memory.address_space import AddressSpace

__all__ = ["Reader", "compile_reader"]

Reader = Callable[[int], tuple[Any, ...]]
"""Takes a struct's address and returns the wanted members; raises MemoryFault."""


def compile_reader(space: AddressSpace, members: Mapping[int, str]) -> Reader:
    """This makes a reader for members of one struct.

    Args:
        space: where the structs lie.
        members: offset of each member in bytes and its format letter of :mod:`struct`, in the
            order in which the reader is to return them; at least two, none overlapping.
    """
    order = sorted(members)
    layout = "<"
    position = 0
    for offset in order:
        if offset < position:
            raise ValueError(f"the member at {offset} overlaps the one before it")
        layout += f"{offset - position}x{members[offset]}"
        position = offset + calcsize("<" + members[offset])
    unpack = space.unpacker(Struct(layout))
    arrange = itemgetter(*(order.index(offset) for offset in members))
    if list(members) == order:
        return unpack
    return lambda address: arrange(unpack(address))
