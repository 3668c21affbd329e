"""Memory that is read as one: pieces of physical memory in the order in which somebody sees them."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from qvmi.addr import PAGE_SIZE, Pa, PaRange, Va
from qvmi.memory.physical import PhysicalMemory

__all__ = ["Piece", "Stretch", "StretchWindow", "data_stretches", "windows"]


class Piece(NamedTuple):
    """This is a run of physical memory.

    Args:
        pa: its first address.
        size: in bytes.
        hole: whether it holds nothing but zeros, and need not be read.
    """

    pa: Pa
    size: int
    hole: bool = False


@dataclass(frozen=True, slots=True)
class Stretch:
    """This is memory that somebody sees as one run.

    Args:
        pieces: of it, in the order in which they are seen.
        start: the virtual address of the first byte; None for what is seen in physical order.
    """

    pieces: Sequence[Piece]
    start: Va | None = None

    @property
    def size(self) -> int:
        """This is its length in bytes."""
        return sum(piece.size for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class StretchWindow:
    """This is a part of a stretch, with some of what is before and behind it.

    Args:
        pieces: of it, what is before and behind it included.
        skip: bytes before the part itself.
        own: bytes of the part itself.
        start: the virtual address of the part itself; None in physical order.
    """

    pieces: tuple[Piece, ...]
    skip: int
    own: int
    start: Va | None

    def places(self, offsets: Iterable[int]) -> Iterator[tuple[Pa, Va | None]]:
        """This iterates where bytes of the part lie, by their offsets in it, which rise."""
        pieces = iter(self.pieces)
        piece, behind = next(pieces, Piece(Pa(0), 0)), -self.skip
        for offset in offsets:
            while offset - behind >= piece.size:
                behind += piece.size
                piece = next(pieces)
            va = None if self.start is None else Va(self.start + offset)
            yield Pa(piece.pa + offset - behind), va


def windows(
    stretches: Iterable[Stretch], size: int, *, before: int, behind: int
) -> Iterator[StretchWindow]:
    """This cuts stretches into parts that lie side by side, each with its surroundings.

    Args:
        stretches: to cut; a window lies in one of them.
        size: of a part, in bytes.
        before: bytes that a window has of what is before its part, where there are so many.
        behind: bytes that it has of what is behind it, likewise.
    """
    for stretch in stretches:
        ends = list(accumulate(piece.size for piece in stretch.pieces))
        whole = ends[-1] if ends else 0
        for at in range(0, whole, size):
            first, last = max(0, at - before), min(whole, at + size + behind)
            pieces = tuple(_cut(stretch.pieces, ends, first, last))
            start = None if stretch.start is None else Va(stretch.start + at)
            yield StretchWindow(pieces, at - first, min(size, whole - at), start)


def _cut(pieces: Sequence[Piece], ends: Sequence[int], first: int, last: int) -> Iterator[Piece]:
    """This iterates the pieces of the bytes [first, last) of a stretch."""
    index = bisect_right(ends, first)
    while first < last:
        piece, end = pieces[index], ends[index]
        within = first - (end - piece.size)
        size = min(last, end) - first
        yield Piece(Pa(piece.pa + within), size, piece.hole)
        first += size
        index += 1


def data_stretches(memory: PhysicalMemory) -> Iterator[Stretch]:
    """This iterates what may hold other bytes than zero, in physical order.

    Data that a small hole parts is one stretch, and a page of each hole that adjoins belongs to it: what
    is looked for may begin or end with zeros.
    """
    known = iter(memory.ranges)
    ram: PaRange | None = next(known, None)
    pending: list[Piece] = []
    for data in memory.data_ranges():
        while ram is not None and ram.end <= data.start:
            yield from _ended(pending, ram)
            pending, ram = [], next(known, None)
        if ram is None:
            return
        yield from _joined(pending, data, ram)
    if ram is not None:
        yield from _ended(pending, ram)


def _joined(pending: list[Piece], data: PaRange, ram: PaRange) -> Iterator[Stretch]:
    """This adds data to the stretch before it, or ends that one and begins another."""
    here = pending[-1].pa + pending[-1].size if pending else ram.start
    gap = data.start - here
    if pending and gap > 2 * PAGE_SIZE:
        yield from _ended(pending, ram)
        pending.clear()
    if gap > 0:
        size = min(gap, 2 * PAGE_SIZE) if pending else min(gap, PAGE_SIZE)
        pending.append(Piece(Pa(data.start - size), size, hole=True))
    pending.append(Piece(data.start, data.size))


def _ended(pending: list[Piece], ram: PaRange) -> Iterator[Stretch]:
    """This gives the stretch that was gathered, with a page of the hole behind it."""
    if pending:
        end = pending[-1].pa + pending[-1].size
        behind = min(ram.end - end, PAGE_SIZE)
        extra = [Piece(Pa(end), behind, hole=True)] if behind > 0 else []
        yield Stretch((*pending, *extra))
