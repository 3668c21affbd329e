"""A family tree is drawn of whatever parents a guest claims."""

from hypothesis import given
from hypothesis import strategies as st

from qvmi.cli.printing.process_tree import ASCII_GUIDES, MAX_DRAWN_DEPTH, branches
from qvmi.semantics.guest_os import Process
from qvmi.testing import fake_process

PIDS = st.integers(0, 6)
FAMILIES = st.lists(st.tuples(PIDS, PIDS), max_size=12)


def family(*pids: tuple[int, int]) -> list[Process]:
    return [fake_process(pid, ppid=ppid, name=f"p{pid}") for pid, ppid in pids]


def drawn(*pids: tuple[int, int]) -> list[str]:
    return [branch.indent(ASCII_GUIDES) + branch.process.name for branch in branches(family(*pids))]


def test_draws_each_process_below_its_parent() -> None:
    assert drawn((1, 0), (2, 0), (3, 1), (4, 2), (5, 3), (6, 1)) == [
        "p1",
        "|- p3",
        "|  `- p5",
        "`- p6",
        "p2",
        "`- p4",
    ]


def test_a_process_whose_parent_is_missing_stands_at_the_top() -> None:
    assert drawn((1, 0), (9, 77)) == ["p1", "p9"]


def test_a_process_that_is_its_own_parent_stands_at_the_top() -> None:
    assert drawn((1, 1), (2, 1)) == ["p1", "`- p2"]


def test_a_loop_of_parents_is_drawn_once_from_the_first_of_it() -> None:
    assert drawn((1, 0), (5, 6), (6, 7), (7, 5)) == ["p1", "p5", "`- p7", "   `- p6"]


def test_two_processes_of_one_pid_share_no_children() -> None:
    assert drawn((5, 0), (5, 0), (6, 5)) == ["p5", "`- p6", "p5"]


@given(FAMILIES)
def test_every_process_is_drawn_exactly_once(pids: list[tuple[int, int]]) -> None:
    processes = family(*pids)
    found = [id(branch.process) for branch in branches(processes)]
    assert sorted(found) == sorted(id(process) for process in processes)


def test_a_chain_of_any_length_is_drawn_in_bounded_lines() -> None:
    chain = family(*((pid, pid - 1) for pid in range(1, 100_001)))
    lines = [branch.indent(ASCII_GUIDES) for branch in branches(chain)]
    assert len(lines) == 100_000
    assert max(map(len, lines)) < 3 * (MAX_DRAWN_DEPTH + 1) + len("(level 100000) ")
    assert lines[-1].endswith("`- (level 99999) ")
