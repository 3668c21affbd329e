"""The questions that are asked to find out who hides, pretends, or was tampered with."""

from functools import cached_property

from qvmi.addr import PAGE_SIZE, Va
from qvmi.semantics.guest_os import (
    CachedFile,
    CgroupHierarchy,
    FilePiece,
    Gap,
    Listing,
    MemoryMapping,
    MemoryRun,
    Process,
    Program,
    Socket,
    TaskSighting,
    Variable,
)
from qvmi.semantics.linux.fs.file_content import FileContents
from qvmi.semantics.linux.processes.cgroup_roots import CgroupRoots
from qvmi.semantics.linux.processes.exec import Programs
from qvmi.semantics.linux.processes.memory_content import MemoryContents
from qvmi.semantics.linux.structures.list import ListWalk
from qvmi.semantics.linux.tasks.pid import PidNamespaces
from qvmi.semantics.linux.tasks.run_queue import RunQueues
from qvmi.semantics.linux.tasks.task_family import TaskFamily
from qvmi.semantics.linux.tasks.task_life import LivingTasks
from qvmi.semantics.linux.tasks.task_sightings import TaskSightings
from qvmi.semantics.linux.tasks.task_slab import TaskSlabs
from qvmi.semantics.linux.walkers import Walkers

__all__ = ["ProcessQuestions"]


class ProcessQuestions(Walkers):
    """This answers what is asked to find out who hides, pretends, or was tampered with."""

    def task_sightings(self) -> Listing[TaskSighting]:
        """This lists tasks once for each of the kernel's structures that leads to them.

        Raises:
            SymbolsError: the profile lacks what this needs.
            WalkFailed: the table of pids cannot be walked at all.
        """
        return self._listing(self._sightings.walk)

    def programs(self, process: Process | None = None) -> Listing[Program]:
        """This lists what a process runs, who made and who traces it, or that of all.

        Raises:
            SymbolsError: the profile lacks what this needs.
            WalkFailed: the process is gone, or the list of processes cannot be walked at all.
        """
        return self._listing(lambda: self._of(process, self._programs.of))

    def environment(self, process: Process | None = None) -> Listing[Variable]:
        """This lists the environment that a process was given, or those of all.

        Raises:
            SymbolsError: the profile lacks what this needs.
            WalkFailed: the process is gone, or its memory or the list of processes cannot be read at all.
        """
        lines = self._command_lines
        return self._one_or_all(process, lines.environment, lines.environments)

    def cgroup_hierarchies(self) -> Listing[CgroupHierarchy]:
        """This lists the hierarchies of cgroups.

        Raises:
            SymbolsError: the kernel has no cgroups, or the profile lacks what this needs.
            WalkFailed: the list of them cannot be walked at all.
        """
        return self._listing(self._cgroup_roots.hierarchies)

    def tabled_sockets(self) -> Listing[Socket]:
        """This lists the sockets of the kernel's own tables, whoever has them open; no row has a pid.

        Raises:
            SymbolsError: the profile lacks what this needs.
        """
        return self._listing(lambda: self._socket_tables.walk().result)

    def file_content(self, file: CachedFile, limit: int = PAGE_SIZE) -> Listing[FilePiece]:
        """This gives what is in memory of the beginning of a file; what is not is a gap.

        Args:
            file: a row of :meth:`cached_files`.
            limit: how many bytes of it, at most.

        Raises:
            SymbolsError: the profile lacks what this needs.
            WalkFailed: the file is gone, or is of a kind that is not read.
        """
        contents = FileContents(self.kernel.space, self._cached_files, self.memmap)

        def walk() -> ListWalk[FilePiece]:
            pieces, missing, retries = contents.beginning(file, limit)
            gaps = [Gap("address_space", file.address, one.reason) for one in missing]
            return ListWalk(dict(enumerate(pieces)), gaps, retries)

        return self._listing(walk)

    def memory_content(
        self, process: Process, mapping: MemoryMapping, start: Va, limit: int
    ) -> Listing[MemoryRun]:
        """This gives what is in memory of a mapping from an address on, run behind run.

        Args:
            process: whose it is; of one that has ended there is nothing, and no gap.
            mapping: a row of :meth:`mappings`.
            start: where in it to begin.
            limit: how many bytes at most. Who goes on asks from the end of the last run on.

        Raises:
            SymbolsError: the profile lacks what this needs.
            WalkFailed: its page tables cannot be found.
        """
        kernel = self.kernel
        contents = MemoryContents(kernel.space, kernel.symbols, self._tasks)
        return self._listing(lambda: contents.of(process, mapping, start, limit))

    @cached_property
    def _cgroup_roots(self) -> CgroupRoots:
        return CgroupRoots(self.kernel.space, self.kernel.symbols)

    @cached_property
    def _programs(self) -> Programs:
        kernel = self.kernel
        return Programs(kernel.space, kernel.symbols, tasks=self._tasks, paths=self._paths)

    @cached_property
    def _task_slabs(self) -> TaskSlabs:
        return TaskSlabs(self.kernel.space, self.kernel.symbols, self.memmap)

    @cached_property
    def _sightings(self) -> TaskSightings:
        space, symbols, tasks = self.kernel.space, self.kernel.symbols, self._tasks
        return TaskSightings(
            self._pid_table,
            PidNamespaces(space, symbols, tasks),
            TaskFamily(space, symbols, tasks),
            RunQueues(space, symbols, self._per_cpu),
            lambda: self._task_slabs,
            LivingTasks(space, symbols, tasks),
        )
