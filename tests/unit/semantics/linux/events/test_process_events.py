"""Processes of a kernel made by hand, which come and go in every way that a kernel has, and lie."""

import random
from typing import Any

import pytest

from qvmi.errors import QvmiError
from qvmi.semantics.rows.events import (
    EventKind,
    GuestEvent,
    Missed,
    NotSeen,
    ProcessExeced,
    ProcessExited,
    ProcessStarted,
    What,
)
from tests.unit.semantics.linux.forking_kernel import ForkingKernel, Watcher

LIE = 1 << 40


def told(events: list[GuestEvent]) -> list[tuple[Any, ...]]:
    """These are events as a test writes them down."""
    words: list[tuple[Any, ...]] = []
    for event in events:
        match event:
            case ProcessStarted():
                words.append(("started", event.process.pid, event.process.name))
            case ProcessExeced():
                words.append(
                    ("execed", event.process.pid, event.was, event.process.name, event.count)
                )
            case ProcessExited():
                words.append(("exited", event.process.pid, event.status))
            case Missed():
                words.append(("missed", event.what, event.count))
            case NotSeen():
                words.append(("gap", event.structure))
    return words


# ------------------------------------------------------------------------------------------ what is told


def test_what_was_there_before_is_not_told() -> None:
    watcher = Watcher(ForkingKernel())
    assert (watcher.at_first, watcher.glance(), watcher.rescan()) == ([], [], [])


def test_a_fork_is_told_once_at_the_next_look() -> None:
    kernel = ForkingKernel()
    watcher = Watcher(kernel)
    task = kernel.fork(40, b"child")
    (event,) = watcher.glance()
    assert isinstance(event, ProcessStarted)
    assert (event.process.pid, event.process.address) == (40, task)
    assert (event.after, event.provenance.at) == (1000.001, 1000.002)
    assert (watcher.glance(), watcher.rescan()) == ([], [])


def test_a_thread_is_found_and_is_no_event() -> None:
    kernel = ForkingKernel()
    watcher = Watcher(kernel)
    kernel.clone_thread(kernel.tasks[1], 41, 1)
    assert watcher.rescan() == []
    assert (watcher.new.forks, watcher.new.found, watcher.new.account()) == (1, 1, 0)


def test_an_exec_is_told_with_both_names_and_how_many_there_were() -> None:
    kernel = ForkingKernel()
    kernel.fork(40, b"old")
    watcher = Watcher(kernel)
    kernel.exec(40, b"new", times=3)
    assert told(watcher.glance()) == []  # it is not young
    assert told(watcher.rescan()) == [("execed", 40, "old", "new", 3)]


def test_an_exec_of_a_young_process_is_told_at_the_next_quick_look() -> None:
    kernel = ForkingKernel()
    watcher = Watcher(kernel)
    kernel.fork(40, b"old")
    watcher.glance()
    kernel.exec(40, b"new")
    assert told(watcher.glance()) == [("execed", 40, "old", "new", 1)]


def test_an_exec_before_the_first_look_is_told_too() -> None:
    kernel = ForkingKernel()
    watcher = Watcher(kernel)
    kernel.fork(40)
    kernel.exec(40, b"new", times=2)
    assert told(watcher.glance()) == [("started", 40, "new"), ("execed", 40, "new", "new", 2)]


def test_what_is_cloned_as_a_sibling_has_not_execed() -> None:
    """With CLONE_PARENT ``parent_exec_id`` is not the maker's own."""
    kernel = ForkingKernel()
    watcher = Watcher(kernel)
    kernel.set_u32(kernel.fork(40), "self_exec_id", 7)
    assert told(watcher.rescan()) == [("started", 40, "sh")]


def test_a_thread_that_execs_takes_its_leaders_place() -> None:
    kernel = ForkingKernel()
    task = kernel.fork(40)
    watcher = Watcher(kernel)
    other = kernel.allocate("task_struct")
    kernel.write(other, kernel.space.read(task, 0x200))  # type: ignore[arg-type]
    kernel.delete(kernel.tasks_link(task))
    kernel.add_tail(kernel.tasks_link(other), kernel.tasks_head)
    kernel.tasks[40] = other
    kernel.attach(40)
    kernel.write(task, b"\xa5" * 0x200)
    kernel.exec(40, b"new")
    assert told(watcher.rescan()) == [("execed", 40, "sh", "new", 1)]
    assert watcher.rescan() == []


def test_an_exit_is_told_with_its_status_and_only_once() -> None:
    kernel = ForkingKernel()
    watcher = Watcher(kernel)
    kernel.fork(40)
    watcher.glance()
    kernel.exit(40, 0x300)
    assert told(watcher.glance()) == [("exited", 40, 0x300)]
    assert watcher.rescan() == []
    kernel.reap(40)
    assert watcher.rescan() == []


def test_a_process_lives_as_long_as_one_of_its_threads() -> None:
    kernel = ForkingKernel()
    kernel.fork(40)
    watcher = Watcher(kernel)
    kernel.exit(40, 0, live=1)
    assert watcher.rescan() == []
    kernel.set_live(40, 0)
    assert told(watcher.rescan()) == [("exited", 40, 0)]


def test_what_is_gone_between_two_looks_has_exited_with_a_status_that_nobody_knows() -> None:
    kernel = ForkingKernel()
    kernel.fork(40)
    watcher = Watcher(kernel)
    kernel.reap(40)
    assert told(watcher.rescan()) == [("exited", 40, None)]


def test_a_process_whose_memory_was_given_back_with_its_pid_has_exited() -> None:
    kernel = ForkingKernel(mapped=False)
    task = kernel.fork(40)
    watcher = Watcher(kernel)
    kernel.reap(40)
    kernel.give_back(task)
    assert told(watcher.rescan()) == [("exited", 40, None)]
    assert watcher.rescan() == []


def test_a_process_off_the_list_that_cannot_be_read_is_a_gap_as_long_as_its_pid_leads_there() -> (
    None
):
    kernel = ForkingKernel(mapped=False)
    task = kernel.fork(40)
    watcher = Watcher(kernel)
    kernel.delete(kernel.tasks_link(task))
    kernel.give_back(task)
    assert told(watcher.rescan()) == [("gap", "task_struct")]
    assert watcher.rescan() == []
    kernel.detach(40)
    assert told(watcher.rescan()) == [("exited", 40, None)]


def test_a_process_that_is_only_off_the_list_has_not_exited() -> None:
    kernel = ForkingKernel()
    task = kernel.fork(40)
    watcher = Watcher(kernel)
    kernel.delete(kernel.tasks_link(task))
    assert watcher.rescan() == []


def test_a_pid_that_is_used_again_is_another_process() -> None:
    kernel = ForkingKernel()
    kernel.fork(40)
    watcher = Watcher(kernel)
    kernel.reap(40)
    kernel.give_out(30)  # the numbers have begun anew
    kernel.fork(40, b"other")
    assert sorted(told(watcher.rescan())) == [("exited", 40, None), ("started", 40, "other")]
    assert watcher.new.account() == 0


def test_only_wanted_kinds_are_told() -> None:
    kernel = ForkingKernel()
    watcher = Watcher(kernel, frozenset({EventKind.EXITED}))
    kernel.fork(40)
    kernel.exec(40, b"new")
    assert watcher.rescan() == []
    kernel.exit(40, 9)
    assert told(watcher.rescan()) == [("exited", 40, 9)]


# --------------------------------------------------------------------------------------------- the account


def test_what_has_come_and_gone_between_two_looks_is_counted_as_missed() -> None:
    kernel = ForkingKernel()
    watcher = Watcher(kernel)
    for pid in range(40, 47):
        kernel.fork(pid)
        kernel.reap(pid)
    kernel.fork(47)
    assert told(watcher.rescan()) == [
        ("started", 47, "sh"),
        ("missed", What.FORKS, 7),
        ("missed", What.EXECS, None),
    ]
    assert (watcher.new.forks, watcher.new.found, watcher.new.account()) == (8, 1, 7)
    assert watcher.rescan() == []


def test_a_number_without_a_task_is_looked_for_until_it_has_one() -> None:
    kernel = ForkingKernel()
    watcher = Watcher(kernel)
    kernel.fork(40)
    kernel.counted(-1)
    kernel.detach(40)
    kernel.delete(kernel.tasks_link(kernel.tasks[40]))
    for _ in range(3):
        assert [watcher.glance() for _ in range(30)] == [[]] * 30
        assert watcher.rescan() == []
    kernel.attach(40)
    kernel.counted()
    assert told(watcher.rescan()) == [("started", 40, "sh")]
    assert watcher.new.account() == 0


def test_a_fork_that_is_under_way_at_the_beginning_is_told() -> None:
    kernel = ForkingKernel()
    kernel.fork(40)
    kernel.counted(-1)
    kernel.detach(40)
    watcher = Watcher(kernel)
    kernel.attach(40)
    kernel.counted()
    assert told(watcher.rescan()) == [("started", 40, "sh")]
    assert watcher.new.account() == 0


def test_more_forks_than_are_looked_for_one_by_one_are_found_in_the_table() -> None:
    kernel = ForkingKernel()
    watcher = Watcher(kernel)
    kernel.fork(40)
    kernel.counted(9_958)
    kernel.fork(9_999)
    assert watcher.glance() == []
    assert sorted(told(watcher.rescan()))[:2] == [
        ("missed", What.EXECS, None),
        ("missed", What.FORKS, 9_958),
    ]
    assert watcher.new.found == 2


def test_a_process_that_is_torn_at_the_first_look_is_told_at_the_next_walk() -> None:
    kernel = ForkingKernel()
    watcher = Watcher(kernel)
    task = kernel.fork(40)
    cred = kernel.get(task + kernel.member("task_struct", "real_cred"))
    kernel.set_u64(task, "real_cred", 0x1234)
    assert watcher.glance() == []
    kernel.set_u64(task, "real_cred", cred)
    assert told(watcher.rescan()) == [("started", 40, "sh")]
    assert (watcher.new.found, watcher.new.account()) == (1, 0)


@pytest.mark.parametrize("off", [1, -1])
def test_processes_that_the_kernel_counts_and_does_not_list_are_a_gap_until_they_agree(
    off: int,
) -> None:
    kernel = ForkingKernel()
    counts = [1 + off]
    watcher = Watcher(kernel, counted=lambda: counts[-1])
    told_at = [told(watcher.rescan()) for _ in range(8)]
    assert [event for events in told_at for event in events] == [("gap", "process_counts")]
    assert not any(told_at[:4])
    counts.append(1)
    assert watcher.rescan() == []
    counts.append(1 + off)
    assert sum(len(watcher.rescan()) for _ in range(8)) == 1


def test_counts_that_change_within_a_look_say_nothing() -> None:
    kernel = ForkingKernel()
    counts = iter(range(5, 1000))
    watcher = Watcher(kernel, counted=lambda: next(counts))
    assert [watcher.rescan() for _ in range(20)] == [[]] * 20


# ------------------------------------------------------------------------------------------------- lies


def test_a_count_that_jumps_is_missed_as_the_kernel_says() -> None:
    kernel = ForkingKernel()
    watcher = Watcher(kernel)
    kernel.counted(LIE)
    assert told(watcher.rescan())[0] == ("missed", What.FORKS, LIE)
    kernel.counted(-LIE)
    kernel.fork(40)
    assert told(watcher.rescan()) == [("started", 40, "sh")]


@pytest.mark.parametrize("cursor", [0, 2, 1 << 22, (1 << 32) - 1])
def test_a_cursor_that_jumps_hides_nothing_that_lives(cursor: int) -> None:
    kernel = ForkingKernel()
    watcher = Watcher(kernel)
    kernel.fork(40)
    kernel.give_out(cursor)
    assert told(watcher.rescan()) == [("started", 40, "sh")]
    assert watcher.new.account() == 0


def test_a_list_that_is_a_loop_is_a_gap_that_is_told_once() -> None:
    kernel = ForkingKernel()
    for pid in (40, 41, 42):
        kernel.fork(pid)
    watcher = Watcher(kernel)
    kernel.u64(kernel.tasks_link(kernel.tasks[42]), kernel.tasks_link(kernel.tasks[40]))
    first = told(watcher.rescan())
    assert {event[0] for event in first} == {"gap"}
    assert watcher.rescan() == []


def test_whatever_bytes_the_kernel_has_nothing_but_our_own_errors_comes_of_them() -> None:
    seed = 4711
    chance = random.Random(seed)
    for _ in range(60):
        kernel = ForkingKernel()
        for pid in range(40, 50):
            kernel.fork(pid)
        watcher = Watcher(kernel)
        known = [0, 1, 2, (1 << 64) - 1, *kernel.tasks.values(), *kernel.idr.values()]
        for _ in range(8):
            start = kernel.init_task
            at = start + chance.randrange(0, (kernel.free - start) // 8) * 8
            kernel.u64(at, chance.choice(known) + chance.choice((0, 2, 8, 0x80)) & (1 << 64) - 1)
            try:
                events = watcher.rescan()
            except QvmiError:
                break
            assert len(events) < 200
