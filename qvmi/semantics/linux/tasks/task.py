"""Processes and threads: ``task_struct`` and the lists it is on.

References: Linux include/linux/sched.h (``task_struct``, ``task_state_index``), fs/proc/array.c
(``proc_pid_status``: which ids are shown), include/linux/sched/signal.h (``for_each_process``,
``for_each_thread``).
"""

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final

from qvmi.addr import Va
from qvmi.errors import MemoryFault, WalkFailed
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap, Process, Thread
from qvmi.semantics.linux.structures.list import Implausible, ListShape, ListWalk, walk_list
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.semantics.rows.processes import require_task
from qvmi.symbols.layout import Symbols, address, field_offset

__all__ = ["PID_MAX_LIMIT", "Tasks", "state_letter"]

PID_MAX_LIMIT: Final = 1 << 22
"""``PID_MAX_LIMIT``: no 64-bit kernel gives a larger pid."""

COMM_SIZE: Final = 16
"""``TASK_COMM_LEN``, its NUL included."""

_STACK_SIZE: Final = 16 << 10
"""``THREAD_SIZE`` of x86-64: each task has a kernel stack, so RAM bounds how many there are."""

_MAX_TROUBLE: Final = 10_000
"""Retries and gaps of all lists of threads together: what a lying guest costs is some 0.2 s."""

_PF_KTHREAD: Final = 0x0020_0000
_TASK_REPORT: Final = 0x7F
"""``TASK_REPORT``, the same since 4.14: the bits of both states that have a letter."""
_TASK_IDLE: Final = 0x402
_SHOWN_AS_D: Final = 0x1000 | 0x8000
"""``TASK_RTLOCK_WAIT`` (5.16) and ``TASK_FROZEN`` (6.1); older kernels have no such bits."""
_LINKS_AT: Final = 2
"""Where the links are among the values that are read of a task, behind its state and flags."""
_LETTERS: Final = "RSDTtXZP"
_LINK: Final = Struct("<Q")
_NANOSECONDS: Final = 1_000_000_000


def state_letter(state: int, exit_state: int) -> str:
    """This is the letter that ps shows for a task.

    Args:
        state: ``task_struct.__state``, ``state`` before 5.14.
        exit_state: ``task_struct.exit_state``.
    """
    if state & _SHOWN_AS_D:
        return "D"
    if state & _TASK_IDLE == _TASK_IDLE:
        return "I"
    return _LETTERS[((state | exit_state) & _TASK_REPORT).bit_length()]


_LETTER_OF_STATE: Final = {state: state_letter(state, 0) for state in (0, 1, 2, _TASK_IDLE)}


@dataclass(frozen=True, slots=True)
class _Offsets:
    """These are the members of ``task_struct`` that rows are made of."""

    tasks: int
    thread_node: int
    thread_head: int
    pid: int
    tgid: int
    state: int
    exit_state: int
    flags: int
    comm: int
    real_parent: int
    real_cred: int
    start_time: int
    signal: int

    @classmethod
    def of(cls, symbols: Symbols) -> "_Offsets":
        """This looks all members up.

        Raises:
            LayoutNotFound: the kernel's types lack one of them.
        """

        def task(*names: str) -> int:
            return field_offset(symbols, "task_struct", *names)

        return cls(
            tasks=task("tasks"),
            thread_node=task("thread_node"),
            thread_head=field_offset(symbols, "signal_struct", "thread_head"),
            pid=task("pid"),
            tgid=task("tgid"),
            state=task("__state", "state"),  # renamed in 5.14 by 2f064a59a11f
            exit_state=task("exit_state"),
            flags=task("flags"),
            comm=task("comm"),
            real_parent=task("real_parent"),
            real_cred=task("real_cred"),
            start_time=task("start_boottime", "real_start_time"),  # renamed in 5.5
            signal=task("signal"),
        )


def _list_head(offset: int) -> tuple[tuple[int, str], tuple[int, str]]:
    """These are the two members of a ``list_head``."""
    return (offset, "Q"), (offset + 8, "Q")


class Tasks:
    """This lists the tasks of one kernel.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        ram_size: bytes of RAM, which bound how many tasks there can be.

    Attributes:
        limit: more tasks than there can be; a longer list is a lie.

    Raises:
        SymbolsError: the profile lacks what a task list needs, or describes no possible layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols, *, ram_size: int) -> None:
        self._space = space
        self._offsets = offsets = _Offsets.of(symbols)
        self._init_task = address(symbols, "init_task")
        self.limit = min(PID_MAX_LIMIT, ram_size // _STACK_SIZE + 1)
        # In the order of the kernel's own struct, which costs nothing to keep.
        state = ((offsets.state, "I"), (offsets.flags, "I"))
        common = (
            (offsets.exit_state, "I"),
            (offsets.pid, "I"),
            (offsets.tgid, "I"),
            (offsets.real_parent, "Q"),
            (offsets.start_time, "Q"),
            (offsets.real_cred, "Q"),
            (offsets.comm, f"{COMM_SIZE}s"),
            (offsets.signal, "Q"),
        )
        by_tasks, by_thread = _list_head(offsets.tasks), _list_head(offsets.thread_node)
        self._read_by_tasks = compile_reader(space, *state, *by_tasks, *common)
        self._read_by_thread = compile_reader(space, *state, *by_thread, *common)
        uid = field_offset(symbols, "cred", "uid")
        gid = field_offset(symbols, "cred", "gid")
        self._read_ids = compile_reader(space, (uid, "I"), (gid, "I"))
        self._read_pids = compile_reader(space, (offsets.pid, "I"), (offsets.tgid, "I"))
        self._read_link = space.unpacker(_LINK)
        self._read_links = compile_reader(
            space, (offsets.real_parent, "Q"), (offsets.real_cred, "Q")
        )

    def processes(self) -> ListWalk[Process]:
        """This walks ``init_task.tasks``, as ``for_each_process`` does.

        Raises:
            WalkFailed: the list's head cannot be read.
        """
        known: dict[int, Process] = {}
        shape = ListShape(
            "task_struct.tasks",
            self._offsets.tasks,
            self._read_by_tasks,
            self._process_maker(known),
            self.limit,
            _LINKS_AT,
        )
        return walk_list(self._space, Va(self._init_task + self._offsets.tasks), shape)

    def process_at(self, task: Va) -> Process:
        """This makes the row of one thread group's leader, wherever its address comes from.

        Raises:
            Implausible: what lies there is no leader's task_struct.
            MemoryFault: it cannot be read.
        """
        return self._process_maker({})(task, self._read_by_tasks(task))

    def thread_at(self, task: Va) -> Thread:
        """This makes the row of one thread, wherever its address comes from.

        Raises:
            Implausible: what lies there is no task_struct.
            MemoryFault: it cannot be read.
        """
        tgid = self._read_pids(task)[1]
        return _thread_maker(tgid)(task, self._read_by_thread(task))

    def threads(self) -> ListWalk[Thread]:
        """This walks the threads of every process.

        Raises:
            WalkFailed: the list of processes cannot be read.
        """
        processes = self.processes()
        result: ListWalk[Thread] = ListWalk(gaps=processes.gaps, retries=processes.retries)
        room = self.limit
        for task, process in processes.rows.items():
            if result.retries + len(result.gaps) > _MAX_TROUBLE:
                given_up = "given up: so many lists of threads are wrong"
                result.gaps.append(Gap("task_struct.thread_node", Va(task), given_up))
                break
            walk = self._threads_of(task, process, room)
            result.rows.update(walk.rows)
            result.gaps.extend(walk.gaps)
            result.retries += walk.retries
            room -= len(walk.rows)
            if room <= 0:
                why = f"more than {self.limit} threads"
                result.gaps.append(Gap("task_struct.thread_node", Va(task), why))
                break
        return result

    def threads_of(self, process: Process | Thread) -> ListWalk[Thread]:
        """This walks the threads of one process, of which its first one is given."""
        return self._threads_of(process.address, process, self.limit)

    def _threads_of(self, task: int, process: Process | Thread, limit: int) -> ListWalk[Thread]:
        """This walks one process's ``signal->thread_head``; one that exited meanwhile has none."""
        shape = ListShape(
            "task_struct.thread_node",
            self._offsets.thread_node,
            self._read_by_thread,
            _thread_maker(process.tgid),
            limit,
            _LINKS_AT,
        )
        try:
            signal = self._read_by_tasks(task)[-1]
            walk = walk_list(self._space, Va(signal + self._offsets.thread_head), shape)
        except (MemoryFault, WalkFailed) as error:
            walk = ListWalk(gaps=[Gap("task_struct.signal", Va(task), str(error))])
        if walk.gaps and not self.is_there(process):
            return ListWalk(retries=walk.retries + 1)
        return walk

    def is_there(self, process: Process | Thread) -> bool:
        """This tells whether a process is still where it was seen, for all one can see."""
        try:
            if not self._is_linked(process.address):
                return False  # memory that was freed may keep what it held for a while
            now = self.process_at(process.address)
        except MemoryFault:
            return True
        except Implausible:
            return False
        return (now.pid, now.start_time_s) == (process.pid, process.start_time_s)

    def require_there(self, process: Process) -> None:
        """This raises WalkFailed where a process is no more, and UsageError for what is none."""
        require_task(process)
        if not self.is_there(process):
            raise WalkFailed("task_struct", f"process {process.pid} is gone")

    def require_thread(self, thread: Thread) -> None:
        """This raises WalkFailed where a thread is no more, for all one can see."""
        try:
            before = self._read_by_thread(thread.address)[_LINKS_AT + 1]
            linked = self._read_link(before)[0] == thread.address + self._offsets.thread_node
            now = self.thread_at(thread.address)
        except MemoryFault:
            return
        except Implausible:
            linked, now = False, thread
        if not linked or (now.pid, now.start_time_s) != (thread.pid, thread.start_time_s):
            raise WalkFailed("task_struct", f"thread {thread.pid} is gone")

    def _is_linked(self, task: int) -> bool:
        """This tells whether the list of tasks leads to one; raises MemoryFault if it is not there."""
        before = self._read_by_tasks(task)[_LINKS_AT + 1]
        try:
            return bool(self._read_link(before)[0] == task + self._offsets.tasks)
        except MemoryFault:
            return False  # LIST_POISON2, or a link that the walk of the list has found wrong

    def _process_maker(self, known: dict[int, Process]) -> Callable[[Va, tuple[Any, ...]], Process]:
        """This makes the function that turns what was read of a task into a row.

        It is the hot path: everything it needs is a local name, and each task is read by one call
        for its own members, one for its ids, and one that proves that neither the credentials nor
        the parent were replaced, and perhaps freed, meanwhile.

        Args:
            known: rows made so far, by address; parents are looked up there.
        """
        read_ids, read_pids, read_links = self._read_ids, self._read_pids, self._read_links
        letters = _LETTER_OF_STATE

        def make(task: Va, values: tuple[Any, ...]) -> Process:
            state, flags, _, _, exit_state, pid, tgid, parent, start_ns, cred, comm, _ = values
            if tgid != pid or pid > PID_MAX_LIMIT:
                raise Implausible(f"pid {pid}, tgid {tgid}: no leader of a thread group")
            uid, gid = read_ids(cred)
            parent_row = known.get(parent)
            ppid = parent_row.tgid if parent_row is not None else read_pids(parent)[1]
            if read_links(task) != (parent, cred):
                raise Implausible(f"pid {pid}: its credentials or its parent have just changed")
            name, end, _ = comm.partition(b"\0")
            if not end or ppid > PID_MAX_LIMIT:
                raise Implausible(f"pid {pid}: comm {comm!r}, ppid {ppid}")
            usual = not exit_state and state in letters
            row = known[task] = Process(
                pid,
                tgid,
                ppid,
                uid,
                gid,
                letters[state] if usual else state_letter(state, exit_state),
                name.decode("utf-8", "backslashreplace"),
                task,
                flags & _PF_KTHREAD != 0,
                start_ns / _NANOSECONDS,
            )
            return row

        return make


def _thread_maker(tgid: int) -> Callable[[Va, tuple[Any, ...]], Thread]:
    """This makes the function that turns what was read of a thread into a row."""

    def make(task: Va, values: tuple[Any, ...]) -> Thread:
        state, _, _, _, exit_state, pid, its_tgid, _, start_ns, _, comm, _ = values
        name, end, _ = comm.partition(b"\0")
        if its_tgid != tgid or pid > PID_MAX_LIMIT or not end:
            raise Implausible(f"pid {pid}, tgid {its_tgid} is no thread of {tgid}")
        return Thread(
            pid,
            tgid,
            state_letter(state, exit_state),
            name.decode("utf-8", "backslashreplace"),
            task,
            start_ns / _NANOSECONDS,
        )

    return make
