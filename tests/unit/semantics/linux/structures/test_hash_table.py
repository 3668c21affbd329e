"""Hash tables written by hand: chains that end, that move, that loop, and that lead nowhere."""

from collections.abc import Callable

import pytest

from qvmi.semantics.linux.structures.effort import Effort, Spent
from qvmi.semantics.linux.structures.hash_table import HashTable, TableWalk
from qvmi.semantics.linux.structures.list import Implausible
from tests.synthetic.kernel_memory import KernelMemory

HEADS = 4
LINK = 0x10
ENTRY = 0x40
NOWHERE = 0x4141_4141_4141_4140
STEPS = 1000


class Table:
    """This is a table of four chains in memory.

    Args:
        numbered: whether chains end with their number.
        points_back: whether nodes do.
    """

    def __init__(
        self, *, numbered: bool = False, points_back: bool = True, mapped: bool = True
    ) -> None:
        self.memory = KernelMemory(mapped=mapped)
        self.heads = self.memory.allocate_bytes(8 * HEADS)
        self.numbered = numbered
        self.points_back = points_back
        for number in range(HEADS):
            self.memory.u64(self.head(number), self.end(number))

    def head(self, number: int) -> int:
        return self.heads + 8 * number

    def end(self, number: int) -> int:
        return 2 * number + 1 if self.numbered else 0

    def chain(self, number: int, count: int) -> list[int]:
        """This makes a chain of so many entries."""
        entries = [self.memory.allocate_bytes(ENTRY) for _ in range(count)]
        behind = self.head(number)
        for entry in entries:
            self.memory.u64(behind, entry + LINK)
            self.memory.u64(entry + LINK + 8, behind if self.points_back else NOWHERE)
            behind = entry + LINK
        self.memory.u64(behind, self.end(number))
        return entries

    def walk(
        self,
        *,
        visit: Callable[[int], int] = lambda entry: entry,
        steps: int = STEPS,
        count: int = HEADS,
    ) -> TableWalk[int]:
        walk: TableWalk[int] = TableWalk(self.memory.space, Effort(steps))
        walk.add(
            HashTable(
                "a table",
                self.heads,
                count,
                8,
                LINK,
                visit,
                points_back=self.points_back,
                is_numbered=self.numbered,
            )
        )
        return walk


KINDS = pytest.mark.parametrize(
    ("numbered", "points_back"), [(False, True), (True, True), (False, False)]
)


@KINDS
def test_every_entry_of_every_chain_is_found(*, numbered: bool, points_back: bool) -> None:
    table = Table(numbered=numbered, points_back=points_back)
    entries = table.chain(0, 1) + table.chain(2, 3)
    result = table.walk().result
    assert (list(result.rows), result.gaps, result.retries) == (entries, [], 0)


def test_the_lock_in_a_head_is_no_address() -> None:
    table = Table(points_back=False)
    entries = table.chain(1, 2)
    table.memory.u64(table.head(1), (entries[0] + LINK) | 1)
    table.memory.u64(table.head(3), 1)
    result = table.walk().result
    assert (list(result.rows), result.gaps) == (entries, [])


@KINDS
def test_a_chain_that_loops_ends_and_hides_no_other(*, numbered: bool, points_back: bool) -> None:
    table = Table(numbered=numbered, points_back=points_back)
    loop, others = table.chain(0, 3), table.chain(2, 3)
    table.memory.u64(loop[2] + LINK, loop[1] + LINK)
    result = table.walk().result
    assert list(result.rows) == loop + others
    (gap,) = result.gaps
    assert gap.address == loop[1] + LINK


@KINDS
def test_a_chain_that_leads_nowhere_is_a_gap(*, numbered: bool, points_back: bool) -> None:
    table = Table(numbered=numbered, points_back=points_back)
    lost, others = table.chain(1, 3), table.chain(2, 1)
    table.memory.u64(lost[0] + LINK, NOWHERE)
    result = table.walk().result
    assert list(result.rows) == [lost[0], *others]
    assert [gap.address for gap in result.gaps] == [NOWHERE]


def test_a_chain_that_ends_as_another_one_is_a_gap() -> None:
    table = Table(numbered=True)
    entries = table.chain(1, 2)
    table.memory.u64(entries[1] + LINK, table.end(3))
    result = table.walk().result
    assert list(result.rows) == entries
    assert "ends as another" in result.gaps[0].reason


def test_an_entry_that_moved_to_another_chain_is_walked_again() -> None:
    table = Table(numbered=True, mapped=False)
    moving, staying = table.chain(0, 2)
    memory = table.memory

    def move(pa: int) -> None:
        if pa == moving + LINK + memory.to_pa:
            memory.ram.before_read = None
            memory.u64(table.head(0), staying + LINK)
            memory.u64(staying + LINK + 8, table.head(0))
            memory.u64(table.head(3), moving + LINK)
            memory.u64(moving + LINK, table.end(3))
            memory.u64(moving + LINK + 8, table.head(3))

    memory.ram.before_read = move
    walk = table.walk()
    assert walk.result.rows.keys() >= {staying}
    assert (walk.result.gaps, walk.result.retries) == ([], 1)
    assert not walk.table_of.keys() - {staying, moving}


def test_an_entry_that_points_back_elsewhere_is_a_gap() -> None:
    table = Table()
    entries = table.chain(1, 3)
    table.memory.u64(entries[1] + LINK + 8, NOWHERE)
    result = table.walk().result
    assert list(result.rows) == entries[:1]
    assert "points back" in result.gaps[0].reason


def test_what_cannot_be_an_entry_is_a_gap() -> None:
    table = Table()
    wrong, right = table.chain(0, 1), table.chain(1, 1)

    def visit(entry: int) -> int:
        if entry in wrong:
            raise Implausible("no entry")
        return entry

    result = table.walk(visit=visit).result
    assert list(result.rows) == right
    assert [gap.reason for gap in result.gaps] == ["no entry"]


def test_a_chain_longer_than_any_is_given_up() -> None:
    table = Table()
    table.chain(0, 60)
    with pytest.raises(Spent):
        table.walk(steps=50)


@pytest.mark.parametrize("count", [(1 << 20) + 1, 0xFFFF_FFFF])
def test_a_table_larger_than_any_is_a_gap(count: int) -> None:
    (gap,) = Table().walk(count=count).result.gaps
    assert f"a table of {count} chains" in gap.reason


def test_an_entry_that_left_the_table_is_known_to_have() -> None:
    table = Table()
    first, second = table.chain(0, 2)
    walk = table.walk()
    table.memory.u64(table.head(0), second + LINK)
    table.memory.u64(second + LINK + 8, table.head(0))
    assert not walk.still_has(first)
    assert walk.still_has(second) is True
