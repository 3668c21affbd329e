"""Processes that start, exec and exit, seen in the memory of a kernel that runs.

New ones are found by their pids, and looked at in every quick look for their first second: most of those
that live shortly are gone by then. Older ones are looked at in a walk of all.

References: Linux include/linux/sched.h, fs/exec.c (``begin_new_exec``: the name is set before
``self_exec_id`` counts, PF_FORKNOEXEC goes), kernel/fork.c (``parent_exec_id`` is the parent's
``self_exec_id``, which the child begins with), kernel/exit.c (``exit_notify``), fs/exec.c (``de_thread``: a
thread that execs takes over its leader's pid and start time).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from qvmi.errors import MemoryFault, WalkFailed
from qvmi.semantics.guest_os import Gap
from qvmi.semantics.linux.events.event_sink import EventSink
from qvmi.semantics.linux.events.new_tasks import FoundTask, NewTasks
from qvmi.semantics.linux.structures.list import Implausible, ListWalk
from qvmi.semantics.linux.tasks.task import Tasks
from qvmi.semantics.linux.tasks.task_moments import TaskMoment, TaskMoments
from qvmi.semantics.rows.events import (
    EventKind,
    Missed,
    ProcessExeced,
    ProcessExited,
    ProcessStarted,
    What,
)
from qvmi.semantics.rows.processes import Process

__all__ = ["ProcessEvents"]

_YOUNG_S: Final = 1.0
"""How long a process is looked at in every quick look."""
_MAX_YOUNG: Final = 256
"""As many at once; with more, the quick looks would take longer than the time between them."""
_FORKNOEXEC: Final = 0x40
"""``PF_FORKNOEXEC``: forked, and has not begun a program of its own."""
_MOST_EXECS: Final = 1000
"""Of a process that is new; what was cloned as a sibling of its maker counts from another beginning."""
_DIFFERS: Final = 5
"""Looks in a row at which the kernel counts other processes than it lists, before that is told."""
_IDS: Final = 1 << 32
"""What is counted of ``self_exec_id``, which has 32 bits before 5.7."""
_NANOSECONDS: Final = 1_000_000_000


@dataclass(slots=True)
class _Known:
    """This is a process that lives, as it was last seen.

    Args:
        row: of it.
        task: where its leader is; another thread that execs takes its place.
        start_ns: when it began.
        exec_id: ``task_struct.self_exec_id``.
        until: it is young up to this time, on the host's clock.
    """

    row: Process
    task: int
    start_ns: int
    exec_id: int
    until: float


class ProcessEvents:
    """This tells of the processes of one kernel.

    Args:
        new: finds new ones.
        moments: reads of one what has become of it.
        tasks: lists all.
        wanted: which kinds are told.
        counted: how many the kernel counts; None where it does not tell.
    """

    def __init__(
        self,
        new: NewTasks,
        moments: TaskMoments,
        tasks: Tasks,
        wanted: Callable[[EventKind], bool],
        counted: Callable[[], int] | None = None,
    ) -> None:
        self._counted = counted
        self._differed = 0
        self._difference: tuple[Gap, ...] = ()
        self._new = new
        self._moments = moments
        self._tasks = tasks
        self._wants_start = wanted(EventKind.STARTED)
        self._wants_exec = wanted(EventKind.EXECED)
        self._wants_exit = wanted(EventKind.EXITED)
        self._known: dict[int, _Known] = {}
        self._young: list[_Known] = []
        self._newest = 0.0
        self._told_missed = 0

    def begin(self, sink: EventSink) -> None:
        """This takes note of what lives.

        Raises:
            WalkFailed, MemoryFault: that cannot be done.
        """
        gaps = list(self._new.begin())
        walk = self._tasks.processes()
        self._newest = max((row.start_time_s for row in walk.rows.values()), default=0.0)
        for row in walk.rows.values():
            its = self._moments.read(row.address)
            if self._new.knows(row.pid, its.start_ns) and not self._has_exited(its):
                self._keep(row, its, until=0.0)
        sink.gaps("processes", (*gaps, *walk.gaps))

    def glance(self, sink: EventSink) -> None:
        """This looks for new processes, and at young ones.

        Raises:
            MemoryFault: the kernel's counts cannot be read.
        """
        for found in self._new.look():
            self._meet(found, sink)
        if self._young:
            self._young = [one for one in self._young if self._stays_young(one, sink)]

    def rescan(self, sink: EventSink) -> None:
        """This looks at all processes, and says how many were missed."""
        gaps: list[Gap] = []
        try:
            late, gaps = self._new.look_again()
            for found in late:
                self._meet(found, sink)
            walk = self._counted_walk()
        except (MemoryFault, WalkFailed) as error:
            sink.gaps("processes", [*gaps, Gap("task_struct.tasks", None, str(error))])
            return
        for row in walk.rows.values():
            self._see(row, sink)
        gaps += walk.gaps
        pids = {row.pid for row in walk.rows.values()}
        for pid in self._known.keys() - pids:
            fault = self._look_after(self._known[pid], sink)
            if fault is not None:
                gaps.append(
                    Gap("task_struct", None, f"process {pid}, which is on no list: {fault}")
                )
        sink.gaps("processes", (*gaps, *self._difference))
        self._tell_missed(sink)

    def _counted_walk(self) -> ListWalk[Process]:
        """This lists all processes, and notes whether the kernel counts others.

        Only what no fork and no exit has changed meanwhile can be compared, and it must differ
        several times in a row.

        Raises:
            WalkFailed, MemoryFault: the list or the counts cannot be read.
        """
        if self._counted is None:
            return self._tasks.processes()
        before = self._counted(), *self._new.moment()
        walk = self._tasks.processes()
        count = self._counted()
        if walk.gaps or before != (count, *self._new.moment()):
            return walk
        self._differed = self._differed + 1 if len(walk.rows) != count else 0
        if not self._differed:
            self._difference = ()
        elif self._differed == _DIFFERS:
            why = f"the kernel counts {count} processes, and lists {len(walk.rows)}"
            self._difference = (Gap("process_counts", None, why),)
        return walk

    def _tell_missed(self, sink: EventSink) -> None:
        missed = self._new.account()
        count, self._told_missed = missed - self._told_missed, missed
        if count <= 0:
            return
        if self._wants_start or self._wants_exit:
            sink.put(Missed(sink.after, sink.label(), What.FORKS, count))
        if self._wants_exec:
            sink.put(Missed(sink.after, sink.label(), What.EXECS, None))

    def _meet(self, found: FoundTask, sink: EventSink) -> None:
        """This takes in a task that is new, and tells of it if it is a process."""
        if found.tgid != found.pid:
            return
        before = self._known.get(found.pid)
        if before is not None and before.start_ns != found.start_ns:
            self._exit(before, None, sink)
        try:
            row, its = self._moments.row(found.task), self._moments.read(found.task)
        except (MemoryFault, Implausible):
            self._new.forget(found)  # gone, or changing: the walk of all sees it if it stays
            return
        if (row.pid, its.start_ns) != (found.pid, found.start_ns):
            self._new.forget(found)
            return
        if self._wants_start:
            sink.put(ProcessStarted(sink.after, sink.label(), row))
        known = self._keep(row, its, until=sink.at + _YOUNG_S)
        if not its.flags & _FORKNOEXEC:
            count = (its.exec_id - its.parent_exec_id) % _IDS
            self._exec(known, row, count if 0 < count < _MOST_EXECS else 1, sink)
        if len(self._young) < _MAX_YOUNG:
            self._young.append(known)

    def _keep(self, row: Process, its: TaskMoment, *, until: float) -> _Known:
        known = _Known(row, row.address, its.start_ns, its.exec_id, until)
        self._known[row.pid] = known
        return known

    def _stays_young(self, known: _Known, sink: EventSink) -> bool:
        """This looks at a young process, and tells whether it is to be looked at again."""
        if self._known.get(known.row.pid) is not known:
            return False
        self._look_after(known, sink)
        return known.until > sink.at and self._known.get(known.row.pid) is known

    def _look_after(self, known: _Known, sink: EventSink) -> MemoryFault | None:
        """This looks at one process, whatever has become of it; what it gives says why it could not."""
        try:
            its = self._its_moment(known)
            if its is None:
                self._exit(known, None, sink)
                return None
            if its.exec_id != known.exec_id:
                self._has_execed(known, its, sink)
            if its.exit_state and self._has_exited(its):
                self._exit(known, its.exit_code, sink)
        except MemoryFault as fault:
            return fault  # its pid leads there yet: another look will tell
        return None

    def _its_moment(self, known: _Known) -> TaskMoment | None:
        """This is what has become of a process; None where not even its pid leads to it any more.

        Raises:
            MemoryFault: its pid leads to what cannot be read.
        """
        try:
            its = self._moments.read(known.task)
        except MemoryFault:
            pass  # memory that was given back; who is still there has a task elsewhere
        else:
            if (its.pid, its.start_ns) == (known.row.pid, known.start_ns):
                return its
        found = self._new.task_of(known.row.pid)
        if found is None or found.start_ns != known.start_ns:
            return None
        known.task = found.task
        return self._moments.read(found.task)

    def _has_exited(self, its: TaskMoment) -> bool:
        """This tells whether the last thread of a process has ended, too."""
        return its.exit_state != 0 and not self._moments.live_threads(its)

    def _see(self, row: Process, sink: EventSink) -> None:
        """This takes in a row of the walk of all."""
        known = self._known.get(row.pid)
        if known is not None and known.row.start_time_s == row.start_time_s:
            known.task = row.address
            self._look_after(known, sink)
            if self._known.get(row.pid) is known:
                known.row = row
            return
        its = self._moment_of(row)
        if its is None or self._new.knows(row.pid, its.start_ns):
            return  # a zombie that was told of, or one that is gone
        if row.start_time_s <= self._newest:  # an old one that the first walk could not see
            self._keep(row, its, until=0.0)
            return
        found = FoundTask(row.pid, row.tgid, row.address, its.start_ns)
        self._new.add(found)
        self._meet(found, sink)

    def _moment_of(self, row: Process) -> TaskMoment | None:
        """This is what has become of the process of a row; None where it is there no more."""
        try:
            its = self._moments.read(row.address)
        except MemoryFault:
            return None
        same = its.start_ns / _NANOSECONDS == row.start_time_s and its.pid == row.pid
        return its if same else None

    def _has_execed(self, known: _Known, its: TaskMoment, sink: EventSink) -> None:
        try:
            row = self._moments.row(known.task)
        except (MemoryFault, Implausible):
            return  # seen again at the next look
        count = (its.exec_id - known.exec_id) % _IDS
        known.exec_id = its.exec_id
        self._exec(known, row, count, sink)

    def _exec(self, known: _Known, row: Process, count: int, sink: EventSink) -> None:
        if self._wants_exec:
            sink.put(ProcessExeced(sink.after, sink.label(), row, known.row.name, count))
        known.row = row

    def _exit(self, known: _Known, status: int | None, sink: EventSink) -> None:
        del self._known[known.row.pid]
        if self._wants_exit:
            sink.put(ProcessExited(sink.after, sink.label(), known.row, status))
