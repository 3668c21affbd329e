"""What has become of one task: whether it runs another program, or has come to its end.

References: Linux include/linux/sched.h, include/linux/sched/signal.h (``signal_struct.live``: threads that
have not come to their end), fs/exec.c (``begin_new_exec`` counts ``self_exec_id``).
"""

from struct import Struct
from typing import Final, NamedTuple

from qvmi.addr import Va
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.structures.list import Implausible
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.semantics.linux.tasks.task import Tasks
from qvmi.semantics.rows.processes import Process
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["TaskMoment", "TaskMoments"]

_TRIES: Final = 3
"""A row whose parent or credentials are just being replaced is read again."""
_NUMBER: Final = Struct("<I")
_POINTER: Final = Struct("<Q")


class TaskMoment(NamedTuple):
    """These are the members of a ``task_struct`` that tell what has become of it."""

    flags: int
    exit_state: int
    exit_code: int
    pid: int
    start_ns: int
    exec_id: int
    parent_exec_id: int
    signal: int


class TaskMoments:
    """This reads of one task what tells what has become of it.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        tasks: makes the rows.

    Raises:
        SymbolsError: the profile lacks what this needs, or describes no possible layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols, tasks: Tasks) -> None:
        def task(*names: str) -> int:
            return field_offset(symbols, "task_struct", *names)

        self._tasks = tasks
        start = task("start_boottime", "real_start_time")
        self._read = compile_reader(
            space,
            (task("flags"), "I"),
            (task("exit_state"), "I"),
            (task("exit_code"), "I"),
            (task("pid"), "I"),
            (start, "Q"),
            (task("self_exec_id"), "I"),
            (task("parent_exec_id"), "I"),
            (task("signal"), "Q"),
        )
        self._live = field_offset(symbols, "signal_struct", "live")
        self._leader = task("group_leader")
        self._read_pointer = space.unpacker(_POINTER)
        self._read_number = space.unpacker(_NUMBER)

    def read(self, task: int) -> TaskMoment:
        """This reads it.

        Raises:
            MemoryFault: it cannot be read.
        """
        return TaskMoment._make(self._read(task))

    def row(self, task: int) -> Process:
        """This is the row of a process whose leader is there.

        Raises:
            MemoryFault, Implausible: it cannot be read, or is none.
        """
        for _ in range(_TRIES - 1):
            try:
                return self._tasks.process_at(Va(task))
            except Implausible:
                continue
        return self._tasks.process_at(Va(task))

    def leader(self, task: int) -> Va:
        """This is the first thread of a thread's process.

        Raises:
            MemoryFault: it cannot be read.
        """
        return Va(self._read_pointer(task + self._leader)[0])

    def live_threads(self, its: TaskMoment) -> int:
        """This is how many of its process's threads have not come to their end.

        Raises:
            MemoryFault: it cannot be read.
        """
        return int(self._read_number(its.signal + self._live)[0]) if its.signal else 0
