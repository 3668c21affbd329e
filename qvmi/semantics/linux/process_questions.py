"""The questions about processes that are asked to find out who hides, pretends or was tampered with."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import TypeVar

from qvmi.errors import SymbolsError
from qvmi.semantics.guest_os import Listing, Process, Program, TaskSighting
from qvmi.semantics.linux.exec import Programs
from qvmi.semantics.linux.list import ListWalk
from qvmi.semantics.linux.pid import PidNamespaces
from qvmi.semantics.linux.run_queue import RunQueues
from qvmi.semantics.linux.task_family import TaskFamily
from qvmi.semantics.linux.task_life import LivingTasks
from qvmi.semantics.linux.task_sightings import TaskSightings
from qvmi.semantics.linux.task_slab import TaskSlabs
from qvmi.semantics.linux.walkers import Walkers

__all__ = ["ProcessQuestions"]

Row = TypeVar("Row")


class ProcessQuestions(Walkers, ABC):
    """These are questions to one kernel; who inherits them says how a listing is made of a walk."""

    @abstractmethod
    def _listing(self, walk: Callable[[], ListWalk[Row]]) -> Listing[Row]:
        """This does a walk, and labels what it found."""

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

    @cached_property
    def _programs(self) -> Programs:
        kernel = self.kernel
        return Programs(kernel.space, kernel.symbols, tasks=self._tasks, paths=self._paths)

    @cached_property
    def _sightings(self) -> TaskSightings:
        space, symbols, tasks = self.kernel.space, self.kernel.symbols, self._tasks
        try:
            slabs = TaskSlabs(space, symbols, self.memmap)
        except SymbolsError:
            slabs = None  # without the memory map there are the other structures
        return TaskSightings(
            self._pid_table,
            PidNamespaces(space, symbols, tasks),
            TaskFamily(space, symbols, tasks),
            RunQueues(space, symbols, self._per_cpu),
            slabs,
            LivingTasks(space, symbols, tasks),
        )
