"""Tasks that were forked since one looked the last time, found by the pids that were given out for them.

The kernel gives pids in rising order and keeps the next one in ``idr.idr_next``, so that a change is seen
by one read, and each new task, thread or process, by one look at the table for its number: no list is
walked. How many there were is the kernel's own count, ``total_forks``.

References: Linux kernel/pid.c (``alloc_pid``: a number is NULL in the table until its ``struct pid`` is
whole, which gets its task later), kernel/fork.c (``copy_process``: a task is attached to its pid and then
counted, under ``tasklist_lock``), lib/idr.c (``idr_alloc_cyclic``).
"""

from collections.abc import Iterator
from struct import Struct
from typing import Final, NamedTuple

from qvmi.addr import Va
from qvmi.errors import MemoryFault, WalkFailed
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap
from qvmi.semantics.linux.structures.list import ListWalk
from qvmi.semantics.linux.structures.record import Reader, compile_reader
from qvmi.semantics.linux.tasks.pid import pid_numbers
from qvmi.symbols.layout import Symbols, address, field_offset

__all__ = ["FoundTask", "NewTasks"]

_STRUCTURE: Final = "init_pid_ns.idr"
_LOOK_BACK: Final = 64
"""Pids before the next one that may have been given to tasks which are not attached yet."""
_MAX_WAITING: Final = 4096
"""Pids that are looked for at once; where more were given out since the last look, the whole table is
walked for what lives."""
_LOOKS: Final = 16
"""How often a pid without a task is looked for. A fork takes a fraction of a millisecond."""
_LATE_LOOKS: Final = 4
"""How often again behind that, at the slower pace: the vCPU that forks may have to wait for its turn."""
_MAX_KNOWN: Final = 1 << 16
"""Tasks that are remembered before the dead ones among them are forgotten."""
_TRIES: Final = 200
"""Looks at the beginning, until nothing was forked within one. Each takes a millisecond."""
_MAX_GAPS: Final = 1000
"""A table with so many wrong entries is none."""
_NUMBER: Final = Struct("<Q")
_CURSOR: Final = Struct("<I")
_LOCKED: Final = Struct("<B")


class FoundTask(NamedTuple):
    """This is a task that a pid leads to.

    Args:
        pid: its number.
        tgid: its process's.
        task: address of its ``task_struct``.
        start_ns: when it began, after the guest's boot; with the pid it tells one task from another.
    """

    pid: int
    tgid: int
    task: Va
    start_ns: int


class NewTasks:
    """This finds new tasks of one kernel, and accounts for those that it has not found.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        limit: more tasks than there can be.

    Attributes:
        found: how many were found since the beginning.

    Raises:
        SymbolsError: the profile lacks what this needs, or describes no possible layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols, *, limit: int) -> None:
        initial = address(symbols, "init_pid_ns")
        self._numbers = pid_numbers(space, symbols, initial, structure=_STRUCTURE, limit=limit)
        idr = initial + field_offset(symbols, "pid_namespace", "idr")
        self._at_next = idr + field_offset(symbols, "idr", "idr_next")
        self._at_forks = address(symbols, "total_forks")
        self._read_number = space.unpacker(_NUMBER)
        self._read_next = space.unpacker(_CURSOR)
        self._read_locked = _writer_reader(space, symbols)
        number = field_offset(symbols, "pid", "numbers") + field_offset(symbols, "upid", "nr")
        # PIDTYPE_PID is the first of each.
        self._read_pid = compile_reader(
            space, (field_offset(symbols, "pid", "tasks"), "Q"), (number, "I")
        )
        self._link = field_offset(symbols, "task_struct", "pid_links")
        start = field_offset(symbols, "task_struct", "start_boottime", "real_start_time")
        pid, tgid = (field_offset(symbols, "task_struct", name) for name in ("pid", "tgid"))
        self._read_task = compile_reader(space, (pid, "I"), (tgid, "I"), (start, "Q"))
        self._next = self._first_forks = self._forks = self._missed = 0
        self._known: dict[int, int] = {}
        self._waiting: dict[int, int] = {}
        self._late: dict[int, int] = {}
        self._must_walk = False
        self._prune_at = _MAX_KNOWN
        self.found = 0

    @property
    def forks(self) -> int:
        """This is how many forks the kernel has counted since the beginning, as last read."""
        return self._forks - self._first_forks

    def begin(self) -> Iterator[Gap]:
        """This takes note of what lives, and iterates what was wrong.

        Raises:
            WalkFailed, MemoryFault: that cannot be done at all.
        """
        result: ListWalk[object] = ListWalk()
        for _ in range(_TRIES):
            before = self.moment()
            result = ListWalk()
            self._known = {one.pid: one.start_ns for one in self._living(result)}
            if before == self.moment() and before[2] == 0:
                break
        else:
            why = (
                "forks of the moment in which the watching began may count as missed, or not at all"
            )
            yield Gap("total_forks", Va(self._at_forks), why)
        yield from result.gaps
        self._first_forks, self._next, _ = before
        self._forks, self._missed, self.found = self._first_forks, 0, 0
        # What has a number and no task yet is counted later, so it is found later.
        back = range(max(1, self._next - _LOOK_BACK), self._next)
        self._waiting = {number: 0 for number in back if number not in self._known}
        self._late, self._must_walk = {}, False

    def moment(self) -> tuple[int, int, int]:
        """These are the forks counted, the next number, and whether a task is being attached."""
        forks = self._read_number(self._at_forks)[0]
        return forks, self._read_next(self._at_next)[0], self._read_locked(0)[0]

    def look(self) -> list[FoundTask]:
        """This gives the tasks that are new since the last look.

        Raises:
            MemoryFault: the count or the next number cannot be read.
        """
        forks = self._read_number(self._at_forks)[0]
        cursor = self._read_next(self._at_next)[0]
        if cursor != self._next:
            self._expect(cursor)
        found = self._settled(self._waiting, _LOOKS, self._late) if self._waiting else []
        self._forks = forks
        return found

    def account(self) -> int:
        """This is how many were not found, for sure, of the forks that had been counted at the last look.

        What was found since may be among those counted later: in a storm this is too few, and right
        behind it.
        """
        if not self._must_walk:
            self._missed = max(self._missed, self.forks - self.found)
        return self._missed

    def look_again(self) -> tuple[list[FoundTask], list[Gap]]:
        """This gives those that the quick looks cannot find, and what could not be looked at.

        Raises:
            MemoryFault, WalkFailed: the table cannot be read.
        """
        found = self._settled(self._late, _LATE_LOOKS, {}) if self._late else []
        if not self._must_walk and len(self._known) < self._prune_at:
            return found, []
        result: ListWalk[object] = ListWalk()
        living = list(self._living(result))
        new = [one for one in living if not self.knows(one.pid, one.start_ns)]
        self._known = {one.pid: one.start_ns for one in living if self.knows(one.pid, one.start_ns)}
        self._prune_at = max(_MAX_KNOWN, 2 * len(self._known))
        if self._must_walk:
            self._must_walk = False
            for one in new:
                self.add(one)
            found += new
        return found, result.gaps

    def knows(self, pid: int, start_ns: int) -> bool:
        """This tells whether a task was there at the beginning, or was found since."""
        return self._known.get(pid) == start_ns

    def add(self, task: FoundTask) -> None:
        """This takes note of a task that was found in another way."""
        self._known[task.pid] = task.start_ns
        self.found += 1

    def forget(self, task: FoundTask) -> None:
        """This takes back that a task was found: nothing can be told of it but that there was one."""
        self._known.pop(task.pid, None)
        self.found -= 1

    def task_of(self, pid: int) -> FoundTask | None:
        """This is the task that has a pid now, if one has.

        Raises:
            MemoryFault: it cannot be read.
        """
        its = self._numbers.find(pid)
        return self._task_of(pid, its) if its else None

    def _task_of(self, number: int, pid: int) -> FoundTask | None:
        """This is the task of a ``struct pid``, if it has one."""
        link, its_number = self._read_pid(pid)
        if its_number != number or not link:
            return None
        task = link - self._link
        its_pid, tgid, start_ns = self._read_task(task)
        return FoundTask(number, tgid, task, start_ns) if its_pid == number else None

    def _expect(self, cursor: int) -> None:
        """This notes which numbers were given out up to a new cursor."""
        first, self._next = self._next, cursor
        # Below the last one: the numbers began anew, and which was the largest is not known.
        if not 0 <= cursor - first <= _MAX_WAITING - len(self._waiting):
            self._must_walk = True
            return
        for number in range(first, cursor):
            self._waiting[number] = 0

    def _settled(self, waiting: dict[int, int], most: int, then: dict[int, int]) -> list[FoundTask]:
        """This looks for the tasks of numbers, and gives those that there are.

        Args:
            waiting: the numbers, and how often each was looked for; those that are settled go.
            most: how often one is looked for.
            then: where those go that had no task until then.
        """
        found: list[FoundTask] = []
        for number, looks in list(waiting.items()):
            try:
                task = self.task_of(number)
            except MemoryFault:
                task = None
            if task is not None:
                del waiting[number]
                if not self.knows(number, task.start_ns):
                    self.add(task)
                    found.append(task)
            elif looks < most:
                waiting[number] = looks + 1
            else:
                del waiting[number]
                if len(then) < _MAX_WAITING:
                    then[number] = 0
        return found

    def _living(self, result: ListWalk[object]) -> Iterator[FoundTask]:
        """This iterates every task that a pid leads to.

        Raises:
            WalkFailed: not even the root of the table can be read.
        """
        for number, pid in self._numbers.entries(result):
            try:
                task = self._task_of(number, pid)
            except MemoryFault as fault:
                if self._numbers.has(number, pid):
                    result.gaps.append(Gap(_STRUCTURE, Va(pid), f"pid {number}: {fault}"))
                if len(result.gaps) > _MAX_GAPS:
                    raise WalkFailed(_STRUCTURE, "so much of it is wrong") from fault
            else:
                if task is not None:
                    yield task


def _writer_reader(space: AddressSpace, symbols: Symbols) -> Reader:
    """This reads whether ``tasklist_lock`` is held for writing; 0 where the kernel has no such lock.

    Corresponds to ``qrwlock.wlocked``; a real-time kernel's lock is made in another way.
    """
    lock, within = symbols.find("tasklist_lock"), symbols.find_field("qrwlock", ("wlocked",))
    if lock is None or within is None:
        return lambda _: (0,)
    read, at = space.unpacker(_LOCKED), lock + within.offset
    return lambda _: read(at)
