"""What processes run: the executable that their memory was made of, and who made and traces them.

References: Linux fs/exec.c (``begin_new_exec``: ``self_exec_id``), kernel/fork.c (``set_mm_exe_file``,
``copy_process``: ``parent_exec_id``), include/linux/sched.h (``ptrace``, ``parent``: the tracer, where
there is one), fs/proc/base.c (``proc_exe_link``).
"""

from collections.abc import Iterable
from struct import Struct
from typing import Final, NamedTuple

from qvmi.addr import Va
from qvmi.errors import MemoryFault
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap, Process, Program
from qvmi.semantics.linux.fs.d_path import Paths
from qvmi.semantics.linux.fs.path_memo import KnownPaths
from qvmi.semantics.linux.processes.mapping_name import MappedFile, MappingNames
from qvmi.semantics.linux.structures.effort import Effort
from qvmi.semantics.linux.structures.list import Implausible, ListWalk
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.semantics.linux.tasks.each_process import of_each
from qvmi.semantics.linux.tasks.task import Tasks
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["Programs"]

_STRUCTURE: Final = "mm_struct.exe_file"
_EXEC_IDS: Final = 1 << 32
"""Exec ids are compared by their lower half: they had no other until 5.7."""
_MAX_EXECS: Final = 1 << 16
"""A process that was made by a parent has not called exec more often than that since; where it seems so,
another one has adopted it."""


class _Task(NamedTuple):
    """These are the members of a ``task_struct`` that are told of."""

    pid: int
    mm: int
    ptrace: int
    parent: int
    real_parent: int
    self_exec_id: int
    parent_exec_id: int


class Programs:
    """This tells what the processes of one kernel run.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        tasks: tells which processes are still there.
        paths: names the files.

    Raises:
        SymbolsError: the profile lacks what this needs, or describes no possible layout.
    """

    def __init__(
        self, space: AddressSpace, symbols: Symbols, *, tasks: Tasks, paths: Paths
    ) -> None:
        self._tasks = tasks
        self._paths = paths
        forms = ("I", "Q", "I", "Q", "Q", "I", "I")
        members = (field_offset(symbols, "task_struct", name) for name in _Task._fields)
        self._read_task = compile_reader(space, *zip(members, forms, strict=True))
        exec_id = field_offset(symbols, "task_struct", "self_exec_id")
        ids = ((field_offset(symbols, "task_struct", "tgid"), "I"), (exec_id, "I"))
        self._read_parent = compile_reader(space, *ids)
        self._exe_file = field_offset(symbols, "mm_struct", "exe_file")
        self._names = MappingNames(space, symbols)
        mode = field_offset(symbols, "inode", "i_mode")
        owner = field_offset(symbols, "inode", "i_uid")
        self._read_inode = compile_reader(space, (mode, "H"), (owner, "I"))
        self._inode = field_offset(symbols, "file", "f_inode")
        self._read_pointer = space.unpacker(Struct("<Q"))

    def of(self, processes: Iterable[Process]) -> ListWalk[Program]:
        """This tells what processes run; one that ends meanwhile is left out."""
        effort = Effort()
        paths = KnownPaths(self._paths, effort)

        def look(process: Process, _: list[Gap]) -> tuple[Program, ...]:
            return (self._row(process, paths),)

        return of_each(processes, look, structure=_STRUCTURE, tasks=self._tasks, effort=effort)

    def _row(self, process: Process, paths: KnownPaths) -> Program:
        """This makes the row of one process, if it does not call exec meanwhile."""
        task = _Task._make(self._read_task(process.address))
        if task.pid != process.pid:
            raise Implausible(f"its task has the pid {task.pid} now")
        file, mode, owner = self._executable(task.mm, paths)
        execs = self._execs(task)
        tracer = self._read_parent(task.parent)[0] if task.ptrace else None
        if _Task._make(self._read_task(process.address)) != task:
            raise Implausible("it calls exec all the time")
        return Program(
            process.pid,
            process.name,
            process.kernel_thread,
            Va(task.mm) if task.mm else None,
            file.name,
            file.deleted,
            file.device,
            file.inode,
            mode,
            owner,
            execs,
            task.self_exec_id,
            process.ppid,
            tracer,
            process.address,
        )

    def _executable(self, mm: int, paths: KnownPaths) -> tuple[MappedFile, int, int]:
        """This is the file that memory was made of, its mode and its owner."""
        file = self._read_pointer(mm + self._exe_file)[0] if mm else 0
        if not file:
            return MappedFile(), 0, 0
        its = self._names.file(file, paths)
        mode, owner = self._read_inode(self._read_pointer(file + self._inode)[0])
        return its, mode, owner

    def _execs(self, task: _Task) -> int | None:
        """This is how often it has called exec since its parent made it, if that is still its parent."""
        try:
            parents = self._read_parent(task.real_parent)[1]
        except MemoryFault:
            return None
        if parents != task.parent_exec_id:
            return None
        execs: int = (task.self_exec_id - task.parent_exec_id) % _EXEC_IDS
        return execs if execs < _MAX_EXECS else None
