"""A kernel made by hand that forks, execs and exits when it is told to.

References: Linux kernel/fork.c (``copy_process``), kernel/exit.c (``release_task``); the offsets are made up.
"""

import struct
from collections.abc import Callable
from itertools import count

from qvmi.addr import Va
from qvmi.errors import MemoryFault
from qvmi.semantics.linux.events.event_sink import EventSink
from qvmi.semantics.linux.events.new_tasks import NewTasks
from qvmi.semantics.linux.events.process_events import ProcessEvents
from qvmi.semantics.linux.tasks.task import Tasks
from qvmi.semantics.linux.tasks.task_moments import TaskMoments
from qvmi.semantics.rows.events import EventKind, GuestEvent
from qvmi.view import Provenance, Taken, View
from tests.synthetic.kernel_memory import LAYOUTS, KernelMemory
from tests.synthetic.symbols import Layouts

__all__ = ["ForkingKernel", "Watcher"]

MIB = 1 << 20
FORKNOEXEC = 0x40
ZOMBIE, DEAD = 0x20, 0x10
_TASK = {
    **LAYOUTS["task_struct"][1],
    "exit_code": 0x90,
    "self_exec_id": 0xB0,
    "parent_exec_id": 0xB8,
    "group_leader": 0xC0,
}
FORKING: Layouts = {
    **LAYOUTS,
    "task_struct": (0x200, _TASK),
    "signal_struct": (0x40, {"thread_head": 0x10, "live": 0x20}),
    "idr": (0x18, {"idr_rt": 0, "idr_next": 0x14}),
}


class ForkingKernel(KernelMemory):
    """This is such a kernel, with process 1.

    Args:
        mapped: whether the subject may read its memory in place.

    Attributes:
        tasks: of what lives, by pid.
    """

    def __init__(self, *, mapped: bool = True) -> None:
        super().__init__(4 * MIB, mapped=mapped, layouts=FORKING)
        self.total_forks = self.allocate_bytes(8)
        self.symbols.addresses["total_forks"] = self.total_forks
        self.tasks: dict[int, int] = {}
        self._starts = count(1_000_000_000, 1_000_000)
        self.fork(1, b"init")

    @property
    def next_pid(self) -> int:
        return (
            self.init_pid_ns + self.member("pid_namespace", "idr") + self.member("idr", "idr_next")
        )

    def counted(self, forks: int = 1) -> None:
        """This counts forks, as if there had been some."""
        self.u64(self.total_forks, self.get(self.total_forks) + forks)

    def give_out(self, up_to: int) -> None:
        """This gives out all numbers before one."""
        self.u32(self.next_pid, up_to)

    def fork(self, pid: int, name: bytes = b"sh") -> int:
        """This makes a process, as `copy_process` does when nothing is missing any more."""
        flags = FORKNOEXEC
        task = self.add_process(pid, name, start_ns=next(self._starts), flags=flags)
        self.set_u64(task, "group_leader", task)
        signal = self.get(task + self.member("task_struct", "signal"))
        self.u32(signal + self.member("signal_struct", "live"), 1)
        self._attach(pid, task)
        return task

    def clone_thread(self, leader: int, pid: int, tgid: int) -> int:
        task = self.add_thread(leader, pid, tgid)
        self.set_u64(task, "start_boottime", next(self._starts))
        signal = self.get(leader + self.member("task_struct", "signal"))
        self.u32(signal + self.member("signal_struct", "live"), 2)
        self._attach(pid, task)
        return task

    def give_back(self, task: int) -> None:
        """This lets the memory of a task be no RAM any more."""
        start = task + self.to_pa

        def is_there(pa: int) -> None:
            if start <= pa < start + 0x200:
                raise MemoryFault(pa, 1, why="given back")

        self.ram.before_read = is_there

    def _attach(self, pid: int, task: int) -> None:
        at = self.idr[pid] + self.member("pid", "tasks")
        self.u64(at, task + self.member("task_struct", "pid_links"))
        self.tasks[pid] = task
        self.give_out(pid + 1)
        self.write_idr()
        self.counted()

    def detach(self, pid: int) -> None:
        """This lets a ``struct pid`` have no task, as before `attach_pid`."""
        self.u64(self.idr[pid] + self.member("pid", "tasks"), 0)

    def attach(self, pid: int) -> None:
        link = self.tasks[pid] + self.member("task_struct", "pid_links")
        self.u64(self.idr[pid] + self.member("pid", "tasks"), link)

    def exec(self, pid: int, name: bytes, times: int = 1) -> None:
        task = self.tasks[pid]
        self.write(task + self.member("task_struct", "comm"), name.ljust(16, b"\0"))
        at = task + self.member("task_struct", "self_exec_id")
        (before,) = struct.unpack("<I", self.space.read(Va(at), 4))
        self.u32(at, before + times)
        self.set_u32(task, "flags", 0)

    def exit(self, pid: int, status: int, *, live: int = 0) -> None:
        """This lets a process's first thread become a zombie."""
        task = self.tasks[pid]
        self.set_u32(task, "exit_code", status)
        self.set_u32(task, "exit_state", ZOMBIE)
        self.set_live(pid, live)

    def set_live(self, pid: int, live: int) -> None:
        signal = self.get(self.tasks[pid] + self.member("task_struct", "signal"))
        self.u32(signal + self.member("signal_struct", "live"), live)

    def reap(self, pid: int) -> None:
        """This takes a process off everything; its memory is used for something else."""
        task = self.tasks.pop(pid)
        self.delete(self.tasks_link(task))
        del self.idr[pid]
        self.write_idr()
        self.write(task, b"\xa5" * 0x200)


class Watcher:
    """This watches the processes of one kernel.

    Args:
        kernel: the kernel.
        kinds: which are told.
        counted: how many processes the kernel counts.
    """

    def __init__(
        self,
        kernel: ForkingKernel,
        kinds: frozenset[EventKind] = frozenset(EventKind),
        counted: Callable[[], int] | None = None,
    ) -> None:
        tasks = Tasks(kernel.space, kernel.symbols, ram_size=kernel.ram.size)
        self.new = NewTasks(kernel.space, kernel.symbols, limit=tasks.limit)
        moments = TaskMoments(kernel.space, kernel.symbols, tasks)
        self.part = ProcessEvents(self.new, moments, tasks, kinds.__contains__, counted)
        self.sink = EventSink(View((), kernel.ram, Provenance(Taken.LIVE, 0.0)))
        self.now = 1000.0
        self._begin()
        self.part.begin(self.sink)
        self.at_first = self.sink.taken()

    def _begin(self) -> None:
        self.sink.begin(after=self.now, at=self.now + 0.001)
        self.now += 0.001

    def glance(self) -> list[GuestEvent]:
        self._begin()
        self.part.glance(self.sink)
        return self.sink.taken()

    def rescan(self) -> list[GuestEvent]:
        """This is a quick look, and one at everything."""
        self._begin()
        self.part.glance(self.sink)
        self.part.rescan(self.sink)
        return self.sink.taken()
