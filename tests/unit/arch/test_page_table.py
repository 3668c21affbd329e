"""Runs of page-table entries are found as they are by looking at one entry after another."""

import struct
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvmi.arch.page_table import EntryForm, entry_runs
from qvmi.arch.paging import X86_64_4_LEVEL

PRESENT, WRITABLE, USER, ACCESSED, DIRTY, LARGE, NO_EXECUTE = 1, 2, 4, 0x20, 0x40, 0x80, 1 << 63
FLAGS = (PRESENT, WRITABLE, USER, ACCESSED, DIRTY, LARGE, NO_EXECUTE)
POINTER, LARGE_PAGE, PAGE = X86_64_4_LEVEL.forms[1:]
ENTRIES = 512


def found(
    entries: Sequence[int], form: EntryForm, first: int = 0, count: int = ENTRIES
) -> list[tuple[int, int, int]]:
    return list(entry_runs(struct.pack(f"<{ENTRIES}Q", *entries), form, first, count))


def one_by_one(
    runs: Sequence[tuple[int, int, int]], form: EntryForm
) -> Iterator[tuple[int, int, bool]]:
    """This takes runs apart again: (index, decisive bits, leaf) of each entry they stand for."""
    for index, entry, length in runs:
        for step in range(length):
            counted = (entry & first_of(form.decisive)) + step * first_of(form.page)
            yield index + step, counted, entry & form.leaf_mask == form.leaf


def first_of(table: int) -> int:
    return table & (1 << 64) - 1


def test_pages_that_follow_each_other_are_one_run() -> None:
    entries = [0x10_0000 + 0x1000 * index | PRESENT | WRITABLE for index in range(ENTRIES)]
    assert found(entries, PAGE) == [(0, entries[0], ENTRIES)]


def test_an_empty_table_has_no_runs() -> None:
    assert found([0] * ENTRIES, PAGE) == []


@pytest.mark.parametrize("flag", [WRITABLE, USER, NO_EXECUTE])
def test_a_run_ends_where_a_right_changes(flag: int) -> None:
    entries = [0x1000 * index | PRESENT | (flag if index >= 300 else 0) for index in range(ENTRIES)]
    assert [(index, length) for index, _, length in found(entries, PAGE)] == [(0, 300), (300, 212)]


@pytest.mark.parametrize("flag", [ACCESSED, DIRTY])
def test_what_the_processor_notes_does_not_end_a_run(flag: int) -> None:
    entries = [0x1000 * index | PRESENT | (flag if index % 3 else 0) for index in range(ENTRIES)]
    assert len(found(entries, PAGE)) == 1


def test_tables_are_never_a_run_even_where_their_addresses_follow_each_other() -> None:
    entries = [(index << 21) | PRESENT for index in range(ENTRIES)]
    assert [length for _, _, length in found(entries, LARGE_PAGE)] == [1] * ENTRIES
    assert [length for _, _, length in found(entries, POINTER)] == [1] * ENTRIES


def test_only_the_entries_asked_for_are_told() -> None:
    entries = [0x1000 * index | PRESENT for index in range(ENTRIES)]
    assert found(entries, PAGE, 5, 7) == [(5, entries[5], 7)]


def test_an_address_that_runs_over_its_bits_ends_a_run() -> None:
    last = 0x000F_FFFF_FFFF_F000
    entries = [last | PRESENT, 0 | PRESENT, *[0] * (ENTRIES - 2)]
    assert [length for _, _, length in found(entries, PAGE)] == [1, 1]


pieces = st.lists(
    st.tuples(
        st.integers(1, 200),
        st.integers(0, 1 << 40),
        st.sets(st.sampled_from(FLAGS)),
        st.sampled_from([0, 0x1000, 1 << 21, 1 << 30, 0x2000]),
    ),
    max_size=8,
)


@given(pieces, st.sampled_from([PAGE, LARGE_PAGE, POINTER]), st.integers(0, 511))
def test_runs_stand_for_exactly_the_entries_that_are_present(
    made_of: list[tuple[int, int, set[int], int]], form: EntryForm, first: int
) -> None:
    entries: list[int] = []
    for count, start, flags, step in made_of:
        bits = sum(flags)
        entries += [start * 0x1000 + step * at & (1 << 52) - 0x1000 | bits for at in range(count)]
    entries = (entries + [0] * ENTRIES)[:ENTRIES]
    expected = [
        (index, entry & first_of(form.decisive), entry & form.leaf_mask == form.leaf)
        for index, entry in enumerate(entries)
        if index >= first and entry & PRESENT
    ]
    assert list(one_by_one(found(entries, form, first, ENTRIES - first), form)) == expected
