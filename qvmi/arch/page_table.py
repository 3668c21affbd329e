"""One page table read whole: its present entries, with those that map one run of memory as one.

A kernel's image fills tables with pages that follow each other. So that 512 entries are not looked
at one by one, the table is taken as one long number with an entry for each digit, and all entries
are compared with the ones before them in a few operations on that number.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Final, Self

__all__ = ["ENTRY_SIZE", "EntryForm", "entry_runs"]

ENTRY_SIZE: Final = 8
_ENTRIES: Final = 512
_TABLE_SIZE: Final = _ENTRIES * ENTRY_SIZE
_ENTRY: Final = Struct("<Q")
_ONES: Final = int.from_bytes(_ENTRY.pack(1) * _ENTRIES, "little")
"""A table of ones: times a number, it is a table of that number."""
_ALL_BUT_LAST: Final = (1 << 8 * (_TABLE_SIZE - ENTRY_SIZE)) - 1


@dataclass(frozen=True, slots=True)
class EntryForm:
    """This says which bits of a level's entries decide whether they map one run.

    Args:
        present: the bits without which an entry maps nothing.
        leaf_mask: the bits that tell whether an entry maps a page.
        leaf: what they are then; a value outside of the mask where none does.
        decisive: the bits that are alike in all entries of a run, but that the address bits among
            them count up by one page each; in every entry of a table.
        page: what one entry maps, in bytes; in every entry of a table.
    """

    present: int
    leaf_mask: int
    leaf: int
    decisive: int
    page: int

    @classmethod
    def of(cls, *, present: int, leaf_mask: int, leaf: int, decisive: int, page_size: int) -> Self:
        """This makes the form from the numbers of a single entry."""
        return cls(present, leaf_mask, leaf, _ONES * decisive, _ONES * page_size)


def entry_runs(
    table: bytes, form: EntryForm, first: int, count: int
) -> Iterator[tuple[int, int, int]]:
    """This iterates (index, entry, length) of a table's present entries.

    A run of more than one entry maps pages that follow each other, with the rights of its first.

    Args:
        table: the 512 entries; fewer where none of them maps a page.
        form: what they look like.
        first: index of the first entry wanted.
        count: how many are wanted.
    """
    breaks: bytes | None = None
    at, end = first * ENTRY_SIZE, (first + count) * ENTRY_SIZE
    while at < end:
        entry = _ENTRY.unpack_from(table, at)[0]
        if not entry:
            at = _skip_zeros(table, at)
            continue
        behind = at + ENTRY_SIZE
        if entry & form.leaf_mask == form.leaf and behind < end:
            if breaks is None:
                breaks = _breaks(table, form)
            behind = min(_skip_zeros(breaks, at) + ENTRY_SIZE, end) if breaks else end
        if entry & form.present == form.present:
            yield at // ENTRY_SIZE, entry, (behind - at) // ENTRY_SIZE
        at = behind


def _breaks(table: bytes, form: EntryForm) -> bytes:
    """This is a table that is zero where the entry behind goes on with the run.

    It is empty where all entries are one run, as in the middle of an image.
    """
    decisive = int.from_bytes(table, "little") & form.decisive
    breaks = decisive >> 8 * ENTRY_SIZE ^ decisive + form.page
    return breaks.to_bytes(_TABLE_SIZE + 1, "little") if breaks & _ALL_BUT_LAST else b""


def _skip_zeros(table: bytes, at: int) -> int:
    """This is the offset of the first entry from an offset on that is not zero."""
    return (len(table) - len(table[at:].lstrip(b"\0"))) // ENTRY_SIZE * ENTRY_SIZE
