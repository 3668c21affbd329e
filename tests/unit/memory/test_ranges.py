"""Joining sets of ranges."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from qvmi.addr import Pa, PaRange
from qvmi.memory.ranges import joined

ranges = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 8)).map(
        lambda pair: PaRange(Pa(pair[0]), Pa(pair[0] + pair[1]))
    )
)


def addresses(of: tuple[PaRange, ...] | list[PaRange]) -> set[int]:
    return {address for one in of for address in range(one.start, one.end)}


@given(ranges)
def test_joining_keeps_every_address_and_adds_none(given_ranges: list[PaRange]) -> None:
    assert addresses(joined(given_ranges)) == addresses(given_ranges)


@given(ranges)
def test_what_is_joined_rises_and_neither_touches_nor_overlaps(
    given_ranges: list[PaRange],
) -> None:
    result = joined(given_ranges)
    assert all(below.end < above.start for below, above in pairwise(result))


def test_no_ranges_are_joined_to_none() -> None:
    assert joined([]) == ()


def test_the_size_of_a_range_is_the_distance_of_its_ends() -> None:
    assert PaRange(Pa(0x1000), Pa(0x3000)).size == 0x2000
