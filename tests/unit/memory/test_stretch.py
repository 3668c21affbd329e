"""Memory is cut into windows that lie side by side, wherever its pieces are."""

from collections.abc import Iterator, Sequence

from hypothesis import given
from hypothesis import strategies as st

from qvmi.addr import Pa, PaRange, Va
from qvmi.memory.physical import Window
from qvmi.memory.stretch import Piece, Stretch, data_stretches, windows

PAGE = 4096


class SparseMemory:
    """This is RAM that holds data in some ranges only."""

    description = "sparse"
    windows: Sequence[Window] = ()

    def __init__(self, ranges: Sequence[PaRange], data: Sequence[PaRange]) -> None:
        self.ranges = ranges
        self._data = data

    def read(self, pa: Pa, size: int) -> bytes:
        raise AssertionError(f"nobody asked for {size} bytes at {pa:#x}")

    def data_ranges(self) -> Iterator[PaRange]:
        yield from self._data

    def close(self) -> None:
        """There is nothing to close."""


def pages(*bounds: int) -> PaRange:
    first, behind = bounds
    return PaRange(Pa(first * PAGE), Pa(behind * PAGE))


def shape(stretch: Stretch) -> list[tuple[int, int, bool]]:
    return [(piece.pa // PAGE, piece.size // PAGE, piece.hole) for piece in stretch.pieces]


def test_a_page_of_the_hole_on_each_side_belongs_to_the_data() -> None:
    memory = SparseMemory([pages(0, 100)], [pages(10, 20)])
    (stretch,) = data_stretches(memory)
    assert shape(stretch) == [(9, 1, True), (10, 10, False), (20, 1, True)]
    assert stretch.start is None


def test_data_that_a_small_hole_parts_is_one_stretch() -> None:
    memory = SparseMemory([pages(0, 100)], [pages(0, 2), pages(4, 5), pages(8, 100)])
    assert [shape(stretch) for stretch in data_stretches(memory)] == [
        [(0, 2, False), (2, 2, True), (4, 1, False), (5, 1, True)],
        [(7, 1, True), (8, 92, False)],
    ]


def test_no_stretch_goes_on_where_ram_ends() -> None:
    ranges = [pages(0, 10), pages(11, 20)]
    memory = SparseMemory(ranges, [pages(8, 10), pages(11, 12)])
    assert [shape(stretch) for stretch in data_stretches(memory)] == [
        [(7, 1, True), (8, 2, False)],
        [(11, 1, False), (12, 1, True)],
    ]


def test_memory_without_data_has_no_stretch() -> None:
    assert list(data_stretches(SparseMemory([pages(0, 10)], []))) == []


PIECES = st.lists(
    st.tuples(st.integers(0, 1 << 30), st.integers(1, 20), st.booleans()), min_size=1, max_size=6
)

STARTS = st.none() | st.just(Va(1 << 40))


@given(PIECES, st.integers(1, 50), st.integers(0, 9), st.integers(0, 9), STARTS)
def test_parts_of_windows_are_the_stretch_and_know_their_surroundings(
    pieces: list[tuple[int, int, bool]], size: int, before: int, behind: int, start: Va | None
) -> None:
    stretch = Stretch(
        tuple(Piece(Pa(pa), length, hole) for pa, length, hole in pieces),
        start,
    )
    whole = [(pa + at, hole) for pa, length, hole in pieces for at in range(length)]
    done = 0
    for window in windows([stretch], size, before=before, behind=behind):
        seen = [(one.pa + at, one.hole) for one in window.pieces for at in range(one.size)]
        assert window.skip == min(before, done)
        first = done - window.skip
        assert seen == whole[first : done + size + behind]
        places = list(window.places(range(window.own)))
        assert [pa for pa, _ in places] == [pa for pa, _ in whole[done : done + window.own]]
        expected = [None if start is None else start + done + at for at in range(window.own)]
        assert [va for _, va in places] == expected
        done += window.own
    assert done == len(whole) == stretch.size
