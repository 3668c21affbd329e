"""Walks of lists that are sound, that change meanwhile, and that lie."""

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvmi.addr import Va
from qvmi.errors import WalkFailed
from qvmi.semantics.linux.structures.list import Implausible, ListShape, ListWalk, walk_list
from qvmi.semantics.linux.structures.record import compile_reader
from tests.synthetic.kernel_memory import DIRECT_MAP, KernelMemory

LINK = 0x10
NOWHERE = 0x1234_5678
LIMIT = 200
BAD_VALUE = 666


class Numbers:
    """A list of numbered entries, and what a walk says of it."""

    def __init__(self, length: int, *, mapped: bool = True) -> None:
        self.memory = KernelMemory(mapped=mapped)
        self.head = self.memory.allocate_bytes(16)
        self.memory.make_list(self.head)
        self.entries = [self.add(number) for number in range(length)]

    def add(self, number: int) -> int:
        entry = self.memory.allocate_bytes(0x40)
        self.memory.u64(entry, number)
        self.memory.add_tail(entry + LINK, self.head)
        return entry

    def link(self, number: int) -> int:
        return self.entries[number] + LINK

    def set_next(self, number: int, link: int) -> None:
        self.memory.u64(self.link(number), link)

    def set_previous(self, number: int, link: int) -> None:
        self.memory.u64(self.link(number) + 8, link)

    def remove(self, number: int) -> None:
        self.memory.delete(self.link(number))

    def led_to(self) -> list[int]:
        """The entries that the links lead to, as one reads them with a pencil."""
        entries, link = [], self.memory.get(self.head)
        while link != self.head:
            entries.append(link - LINK)
            link = self.memory.get(link)
        return entries

    def at_read(self, occasion: int, change: Callable[[], None]) -> None:
        """This makes a change just before one read of the walk, counted from now."""
        left = occasion

        def before_read(_: int) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                change()

        self.memory.ram.before_read = before_read

    def walk(self, *, limit: int = LIMIT) -> ListWalk[int]:
        read = compile_reader(self.memory.space, (LINK, "Q"), (LINK + 8, "Q"), (0, "Q"))
        shape = ListShape("numbers.list", LINK, read, visit, limit)
        return walk_list(self.memory.space, Va(self.head), shape)

    def numbers(self) -> list[int]:
        return list(self.walk().rows.values())


def visit(_: int, values: tuple[Any, ...]) -> int:
    number: int = values[2]
    if number == BAD_VALUE:
        raise Implausible("a bad value")
    return number


# -------------------------------------------------------------------------------------------- sound lists


@pytest.mark.parametrize("length", [0, 1, 2, 50])
def test_a_sound_list_is_walked_in_order_without_gaps(length: int) -> None:
    numbers = Numbers(length)
    walk = numbers.walk()
    assert list(walk.rows) == numbers.entries
    assert list(walk.rows.values()) == list(range(length))
    assert (walk.gaps, walk.retries) == ([], 0)


def test_as_many_entries_as_there_may_be_are_no_gap() -> None:
    assert Numbers(50).walk(limit=50).gaps == []


def test_a_longer_list_than_there_may_be_is_cut_off_with_a_gap() -> None:
    walk = Numbers(51).walk(limit=50)
    assert len(walk.rows) == 50
    assert "more than 50 entries" in walk.gaps[0].reason


@pytest.mark.parametrize("head", [NOWHERE, (1 << 64) - 4, -16])
def test_a_head_that_cannot_be_read_fails_the_walk(head: int) -> None:
    numbers = Numbers(1)
    numbers.head = head
    with pytest.raises(WalkFailed, match=r"numbers\.list") as caught:
        numbers.walk()
    assert caught.value.structure == "numbers.list"


def test_a_head_that_can_be_read_no_more_fails_the_walk() -> None:
    numbers = Numbers(3)
    numbers.set_next(1, NOWHERE)
    head = numbers.head

    def visit_and_lose_the_head(entry: int, values: tuple[Any, ...]) -> int:
        numbers.memory.ram.close()
        return visit(entry, values)

    read = compile_reader(numbers.memory.space, (LINK, "Q"), (LINK + 8, "Q"), (0, "Q"))
    shape = ListShape("numbers.list", LINK, read, visit_and_lose_the_head, LIMIT)
    with pytest.raises(WalkFailed):
        walk_list(numbers.memory.space, Va(head), shape)


# ------------------------------------------------------------------------------- lists frozen in mid-change


def test_an_entry_half_added_in_the_middle_is_no_gap() -> None:
    # __list_add_rcu: the entry before leads to the new one, the entry behind does not yet lead back.
    numbers = Numbers(4)
    numbers.set_previous(2, numbers.link(0))
    assert numbers.numbers() == [0, 1, 2, 3]
    assert numbers.walk().gaps == []


def test_an_entry_half_added_at_the_end_is_no_gap() -> None:
    numbers = Numbers(4)
    numbers.memory.u64(numbers.head + 8, numbers.link(2))
    assert (numbers.numbers(), numbers.walk().gaps) == ([0, 1, 2, 3], [])


def test_an_entry_half_removed_is_no_gap() -> None:
    # __list_del: the entry behind leads back past the removed one, which is still led to.
    numbers = Numbers(4)
    numbers.set_previous(3, numbers.link(1))
    assert numbers.walk().gaps == []


# ----------------------------------------------------------------------------- lists that change meanwhile


@pytest.mark.parametrize("occasion", range(1, 14))
@pytest.mark.parametrize("removed", [0, 5, 9])
def test_an_entry_removed_during_the_walk_leaves_no_gap(occasion: int, removed: int) -> None:
    numbers = Numbers(10, mapped=False)
    numbers.at_read(occasion, lambda: numbers.remove(removed))
    walk = numbers.walk()
    kept = [number for number in walk.rows.values() if number != removed]
    assert kept == [number for number in range(10) if number != removed]
    assert walk.gaps == []


@pytest.mark.parametrize("occasion", range(1, 14))
def test_an_entry_added_during_the_walk_leaves_no_gap(occasion: int) -> None:
    numbers = Numbers(10, mapped=False)
    numbers.at_read(occasion, lambda: numbers.entries.append(numbers.add(10)))
    walk = numbers.walk()
    assert list(walk.rows.values()) in (list(range(10)), list(range(11)))
    assert walk.gaps == []


@pytest.mark.parametrize("occasion", range(2, 12))
def test_an_entry_freed_and_used_again_at_the_end_is_told_once(occasion: int) -> None:
    numbers = Numbers(10, mapped=False)

    def move_the_first_to_the_end() -> None:
        numbers.remove(0)
        numbers.memory.add_tail(numbers.link(0), numbers.head)

    numbers.at_read(occasion, move_the_first_to_the_end)
    walk = numbers.walk()
    assert sorted(walk.rows.values()) == list(range(10))
    assert walk.gaps == []


def test_many_entries_removed_behind_the_walk_are_dropped() -> None:
    numbers = Numbers(20, mapped=False)

    def remove_all_but_the_last() -> None:
        for number in range(19):
            numbers.remove(number)

    numbers.at_read(15, remove_all_but_the_last)
    walk = numbers.walk()
    assert list(walk.rows.values()) == [19]
    assert walk.gaps == []
    assert walk.retries > 0


changes = st.lists(
    st.tuples(st.integers(1, 40), st.sampled_from(["add", "remove", "move"]), st.integers(0, 11)),
    max_size=12,
)


@given(changes)
def test_whatever_changes_what_stays_is_told_once_and_without_gaps(
    planned: list[tuple[int, str, int]],
) -> None:
    numbers = Numbers(12, mapped=False)
    removed: set[int] = set()
    reads = 0

    def before_read(_: int) -> None:
        nonlocal reads
        reads += 1
        for occasion, change, number in planned:
            if occasion != reads:
                continue
            if change == "add":
                numbers.entries.append(numbers.add(len(numbers.entries)))
            elif number not in removed:
                numbers.remove(number)
                if change == "remove":
                    removed.add(number)
                else:
                    numbers.memory.add_tail(numbers.link(number), numbers.head)

    numbers.memory.ram.before_read = before_read
    walk = numbers.walk()
    found = list(walk.rows.values())
    assert walk.gaps == []
    assert set(range(12)) - removed <= set(found) <= set(range(len(numbers.entries)))
    assert len(set(found)) == len(found)


def test_a_list_that_never_holds_still_is_given_up() -> None:
    numbers = Numbers(10, mapped=False)
    places = count(NOWHERE)
    numbers.memory.ram.before_read = lambda _: numbers.set_previous(5, next(places))
    walk = numbers.walk()
    assert "changes too fast" in walk.gaps[0].reason
    assert sorted(walk.rows.values()) == list(range(10))
    assert numbers.memory.ram.reads < 10_000


def test_each_trouble_is_noted_once_however_often_the_walk_steps_back() -> None:
    numbers = Numbers(10)
    numbers.set_previous(3, numbers.link(0))
    numbers.memory.u64(numbers.entries[7], BAD_VALUE)
    walk = numbers.walk()
    assert [gap.address for gap in walk.gaps] == [numbers.entries[3], numbers.entries[7]]
    assert list(walk.rows.values()) == [0, 1, 2, 3, 4, 5, 6, 8, 9]


# ------------------------------------------------------------------------------------------ lists that lie


@pytest.mark.parametrize("target", [NOWHERE, 0, (1 << 64) - 1, 8, DIRECT_MAP + (1 << 20) - 8])
@pytest.mark.parametrize("broken", [0, 4, 9])
def test_behind_a_link_to_nowhere_the_rest_is_reached_backwards(broken: int, target: int) -> None:
    numbers = Numbers(10)
    numbers.set_next(broken, target)
    walk = numbers.walk()
    assert list(walk.rows.values()) == list(range(10))
    assert len(walk.gaps) == 1
    assert f"{9 - broken} entries behind it were reached backwards" in walk.gaps[0].reason


def test_a_first_link_to_nowhere_is_walked_around() -> None:
    numbers = Numbers(5)
    numbers.memory.u64(numbers.head, NOWHERE)
    walk = numbers.walk()
    assert list(walk.rows.values()) == [0, 1, 2, 3, 4]
    assert len(walk.gaps) == 1


def test_an_entry_that_cannot_be_one_is_the_gap_and_the_rest_is_told() -> None:
    numbers = Numbers(10)
    numbers.memory.u64(numbers.entries[4], BAD_VALUE)
    walk = numbers.walk()
    assert list(walk.rows.values()) == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert [(gap.address, gap.structure) for gap in walk.gaps] == [
        (numbers.entries[4], "numbers.list")
    ]
    assert "a bad value" in walk.gaps[0].reason


def test_what_lies_between_two_bad_entries_is_lost_and_said_so() -> None:
    numbers = Numbers(10)
    for bad in (3, 6):
        numbers.memory.u64(numbers.entries[bad], BAD_VALUE)
    walk = numbers.walk()
    assert list(walk.rows.values()) == [0, 1, 2, 7, 8, 9]
    assert "3 entries behind it" in walk.gaps[0].reason


def test_a_list_that_ends_too_early_is_noticed_and_the_rest_is_told() -> None:
    numbers = Numbers(10)
    numbers.set_next(6, numbers.head)
    walk = numbers.walk()
    assert list(walk.rows.values()) == list(range(10))
    assert "the list's head points back to" in walk.gaps[0].reason


@pytest.mark.parametrize(("source", "target"), [(9, 0), (9, 5), (5, 0), (5, 4), (5, 5), (0, 0)])
def test_a_loop_ends_with_a_gap_and_no_row_twice(source: int, target: int) -> None:
    numbers = Numbers(10)
    numbers.set_next(source, numbers.link(target))
    walk = numbers.walk()
    assert sorted(walk.rows.values()) == list(range(10))
    assert walk.gaps
    assert walk.retries < 10


def test_a_loop_that_leads_back_consistently_is_given_up() -> None:
    numbers = Numbers(10)
    numbers.set_next(9, numbers.link(3))
    numbers.set_previous(3, numbers.link(9))
    walk = numbers.walk()
    assert set(walk.rows.values()) == set(range(10))
    assert any("already seen" in gap.reason for gap in walk.gaps)


def test_an_entry_that_leads_back_to_another_one_is_told_with_a_gap() -> None:
    numbers = Numbers(10)
    numbers.set_previous(5, numbers.link(1))
    walk = numbers.walk()
    assert list(walk.rows.values()) == list(range(10))
    assert [gap.address for gap in walk.gaps] == [numbers.entries[5]]


def test_an_entry_that_leads_to_itself_ends_the_walk() -> None:
    numbers = Numbers(3)
    numbers.set_next(1, numbers.link(1))
    numbers.set_previous(1, numbers.link(1))
    walk = numbers.walk()
    assert set(walk.rows.values()) == {0, 1, 2}
    assert walk.gaps


@given(
    st.lists(
        st.tuples(st.integers(0, 11), st.sampled_from([0, 8]), st.integers(-3, 12)), max_size=10
    )
)
def test_whatever_the_links_are_the_walk_ends_and_tells_no_row_twice(
    lies: list[tuple[int, int, int]],
) -> None:
    numbers = Numbers(12)
    places = {number: numbers.link(number) for number in range(12)}
    places |= {-3: NOWHERE, -2: 0, -1: numbers.head, 12: (1 << 64) - 8}
    for number, which, target in lies:
        numbers.memory.u64(numbers.link(number) + which, places[target])
    walk = numbers.walk()
    assert set(walk.rows) <= set(numbers.entries)
    assert walk.gaps or list(walk.rows) == numbers.led_to()
    assert len(walk.gaps) <= 2 * len(numbers.entries)
