"""Whether a table that was read from outside agrees with the guest's own /proc.

What changes while both are taken is looked at again, and nothing but this is made allowance for:

- Process 1 is busy answering while it reports itself (R), and waits (S) while we look.
- A kernel thread wakes and sleeps at any moment. Each must agree in one of the looks.
- /proc shows the full name of a kernel thread, of which ``task_struct.comm`` holds 15 bytes.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from qvmi import Listing, Process, Thread
from tests.guests.lab import Guest, Task, Truth

__all__ = [
    "assert_processes_agree",
    "assert_threads_agree",
    "at_rest",
    "shown_name",
    "start_ticks",
]

_LOOKS: Final = 25
"""Some kernel thread is awake in most looks, another one each time; two or three looks suffice."""
_COMM_BYTES: Final = 15
_COMPARED: Final = ("tgid", "ppid", "uid", "gid", "kernel_thread")

Row = Process | Thread


def shown_name(name: bytes) -> str:
    """This is how a name is written whose bytes need not be UTF-8."""
    return name.decode("utf-8", "backslashreplace")


def start_ticks(row: Row, clock_ticks: int) -> int:
    """This is a row's start in the unit of /proc/PID/stat, rounded down as the kernel does."""
    return round(row.start_time_s * 1e9) // (1_000_000_000 // clock_ticks)


def at_rest(listing: Listing[Process]) -> frozenset[Process]:
    """These are the rows that are the same in every look: neither kernel threads nor process 1."""
    assert not listing.gaps
    return frozenset(row for row in listing if not row.kernel_thread and row.pid > 1)


def assert_processes_agree(guest: Guest, look: Callable[[], Listing[Process]]) -> int:
    """This compares every field of every process; it returns how many there are."""
    return _assert_agree(guest, look, lambda truth: truth.processes)


def assert_threads_agree(guest: Guest, look: Callable[[], Listing[Thread]]) -> int:
    """This compares every field of every thread; it returns how many there are."""
    return _assert_agree(guest, look, lambda truth: truth.tasks)


def _assert_agree(
    guest: Guest,
    look: Callable[[], Listing[Process] | Listing[Thread]],
    wanted: Callable[[Truth], tuple[Task, ...]],
) -> int:
    """This looks between two answers of the guest, until they are the same and all has agreed."""
    agreed: set[int] = set()
    awake: dict[int, str] = {}
    truth = guest.truth()
    for _ in range(_LOOKS):
        before, listing, truth = truth, look(), guest.truth()
        if [task.identity for task in before.tasks] != [task.identity for task in truth.tasks]:
            continue
        tasks = {task.pid: task for task in wanted(truth)}
        assert not listing.gaps
        assert not list(_differences(listing, tasks, truth.clock_ticks))
        awake = {row.pid: row.state for row in listing if not _state_agrees(row, tasks, truth)}
        assert all(tasks[pid].kernel_thread for pid in awake), f"states seen: {awake}"
        agreed |= tasks.keys() - awake.keys()
        if agreed >= tasks.keys():
            return len(tasks)
    raise AssertionError(f"no agreement in {_LOOKS} looks; kernel threads awake at last: {awake}")


def _differences(rows: Iterable[Row], tasks: dict[int, Task], clock_ticks: int) -> Iterator[str]:
    seen = [row.pid for row in rows]
    yield from (f"{pid} is listed twice" for pid in set(seen) if seen.count(pid) > 1)
    yield from (f"{tasks[pid]} is missing" for pid in tasks.keys() - set(seen))
    for row in rows:
        if row.pid not in tasks:
            yield f"{row} does not exist"
            continue
        task = tasks[row.pid]
        wrong = [name for name in _COMPARED if getattr(row, name, None) != getattr(task, name)]
        known = [name for name in wrong if hasattr(row, name)]
        if (
            known
            or not _name_agrees(row, task)
            or start_ticks(row, clock_ticks) != task.start_ticks
        ):
            yield f"{row} is {task}"


def _name_agrees(row: Row, task: Task) -> bool:
    name = task.name[:_COMM_BYTES] if task.kernel_thread else task.name
    return row.name == shown_name(name)


def _state_agrees(row: Row, tasks: dict[int, Task], truth: Truth) -> bool:
    if row.pid == truth.reporter:
        return row.state in {"R", "S"}
    return row.state == tasks[row.pid].state
