"""Tasks by every structure that leads to them, so that who is cut out of some is seen in the others."""

from collections.abc import Callable
from dataclasses import dataclass

from qvmi.errors import MemoryFault, SymbolsError, WalkFailed
from qvmi.semantics.guest_os import Gap, Process, Thread
from qvmi.semantics.linux.structures.list import Implausible, ListWalk
from qvmi.semantics.linux.tasks.pid import PidNamespaces, PidTable
from qvmi.semantics.linux.tasks.run_queue import RunQueues
from qvmi.semantics.linux.tasks.task_family import TaskFamily
from qvmi.semantics.linux.tasks.task_life import LivingTasks
from qvmi.semantics.linux.tasks.task_slab import TaskSlabs
from qvmi.semantics.rows.sightings import TaskSighting, TaskView

__all__ = ["TaskSightings"]

_NOT_THERE = (MemoryFault, SymbolsError, WalkFailed)


@dataclass(frozen=True, slots=True)
class TaskSightings:
    """This asks each structure of one kernel for tasks.

    Args:
        pids: the initial pid namespace.
        namespaces: the others.
        family: who is whose child.
        queues: what the CPUs do.
        slabs: gives what tasks are made in; raises SymbolsError where the kernel does not tell.
        living: tells whether there is a task.
    """

    pids: PidTable
    namespaces: PidNamespaces
    family: TaskFamily
    queues: RunQueues
    slabs: Callable[[], TaskSlabs]
    living: LivingTasks

    def walk(self) -> ListWalk[TaskSighting]:
        """This lists tasks, each once for each structure that leads to it.

        Of the list of processes, which is a question of its own, it lists nothing.
        """
        result: ListWalk[TaskSighting] = ListWalk()
        by_pid = self.pids.threads()
        _add(result, TaskView.PIDS, by_pid)
        try:
            family, threads = self.family.descendants()
        except WalkFailed as error:
            result.gaps.append(Gap(TaskView.CHILDREN, None, str(error)))
        else:
            _add(result, TaskView.CHILDREN, family)
            _add(result, TaskView.THREADS, threads)
        members = {row.address: row for row in by_pid.rows.values()}
        _add(result, TaskView.INNER_PIDS, self.namespaces.processes(members.values()))
        try:
            idle = self.queues.idle()
        except _NOT_THERE as error:  # they are in slabs, too, and in nothing else
            views = (TaskView.RUNNABLE, TaskView.RUNNING, TaskView.LOADED, TaskView.SLAB)
            result.gaps += (Gap(view, None, str(error)) for view in views)
        else:
            self._add_of_cpus(result, idle)
            self._add_of_slabs(result, idle)
        return result

    def _add_of_cpus(self, result: ListWalk[TaskSighting], idle: set[int]) -> None:
        for view, tasks, at in (
            (TaskView.RUNNABLE, self.queues.queued, self.living.at_work),
            (TaskView.RUNNING, self.queues.running, self.living.at_work),
            (TaskView.LOADED, self.queues.loaded, self.living.at),
        ):
            try:
                found = tasks()
            except _NOT_THERE as error:
                result.gaps.append(Gap(view, None, str(error)))
                continue
            rows = at(one for one in found if one not in idle)
            _add(result, view, ListWalk({row.address: row for row in rows}))

    def _add_of_slabs(self, result: ListWalk[TaskSighting], idle: set[int]) -> None:
        found: ListWalk[Thread] = ListWalk()
        try:
            addresses = [one for one in self.slabs().objects() if one not in idle]
        except (*_NOT_THERE, Implausible) as error:
            result.gaps.append(Gap(TaskView.SLAB, None, str(error)))
            return
        found.rows.update((row.address, row) for row in self.living.at(addresses))
        _add(result, TaskView.SLAB, found)


def _add(
    result: ListWalk[TaskSighting], view: TaskView, found: ListWalk[Process] | ListWalk[Thread]
) -> None:
    """This adds what one structure leads to."""
    for row in found.rows.values():
        result.rows[len(result.rows)] = TaskSighting(
            view, row.pid, row.tgid, row.state, row.name, row.address, row.start_time_s
        )
    result.gaps.extend(found.gaps)
    result.retries += found.retries
