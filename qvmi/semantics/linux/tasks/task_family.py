"""Who is whose child: the tree of tasks, which grows from the first one.

References: Linux include/linux/sched.h (``children``, ``sibling``, ``thread_node``), kernel/fork.c
copy_process() (who is made is a child of the thread that made it), kernel/exit.c
(``forget_original_parent``, ``do_wait``).
"""

from collections import deque
from typing import Any, Final

from qvmi.addr import Va
from qvmi.errors import MemoryFault, WalkFailed
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap, Thread
from qvmi.semantics.linux.structures.list import Implausible, ListShape, ListWalk, walk_list
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.semantics.linux.tasks.task import Tasks
from qvmi.symbols.layout import Symbols, address, field_offset

__all__ = ["TaskFamily"]

_STRUCTURE: Final = "task_struct.children"
_MAX_TROUBLE: Final = 10_000
"""Retries and gaps of all lists of children together, as for those of threads."""


class TaskFamily:
    """This walks the tree of the tasks of one kernel.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        tasks: makes the rows.

    Raises:
        SymbolsError: the profile lacks what this needs, or describes no possible layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols, tasks: Tasks) -> None:
        self._space = space
        self._tasks = tasks
        self._init_task = address(symbols, "init_task")
        self._children = field_offset(symbols, "task_struct", "children")
        sibling = field_offset(symbols, "task_struct", "sibling")
        self._shape = ListShape(
            _STRUCTURE,
            sibling,
            compile_reader(space, (sibling, "Q"), (sibling + 8, "Q")),
            self._child,
            tasks.limit,
        )
        self._read_head = compile_reader(space, (self._children, "Q"), (self._children + 8, "Q"))

    def descendants(self) -> tuple[ListWalk[Thread], ListWalk[Thread]]:
        """This lists the processes that are the first task's descendants, and all their threads.

        Raises:
            WalkFailed: the first task's children cannot be walked at all.
        """
        family: ListWalk[Thread] = ListWalk()
        threads: ListWalk[Thread] = ListWalk()
        self._add_children(self._init_task, family)
        ahead = deque(family.rows.values())
        while ahead:
            process = ahead.popleft()
            its = self._tasks.threads_of(process)
            _merge(threads, its)
            for parent in {process.address, *its.rows}:
                try:
                    ahead.extend(self._add_children(parent, family))
                except WalkFailed as error:
                    self._note(family, process, error)
            troubles = sum(len(walk.gaps) + walk.retries for walk in (family, threads))
            if troubles > _MAX_TROUBLE or len(family.rows) > self._tasks.limit:
                why = "given up: so many lists of children are wrong"
                family.gaps.append(Gap(_STRUCTURE, process.address, why))
                break
        return family, threads

    def _add_children(self, parent: int, family: ListWalk[Thread]) -> list[Thread]:
        """This adds the children of one task, and gives those that were not known.

        Raises:
            WalkFailed: it cannot be read.
        """
        head = Va(parent + self._children)
        try:
            if self._read_head(parent)[0] == head:
                return []
        except MemoryFault as fault:
            raise WalkFailed(_STRUCTURE, str(fault)) from fault
        found = walk_list(self._space, head, self._shape)
        new = [row for at, row in found.rows.items() if at not in family.rows]
        _merge(family, found)
        return new

    def _note(self, family: ListWalk[Thread], process: Thread, error: WalkFailed) -> None:
        """This notes a list that cannot be read, unless its owner has ended."""
        family.retries += 1
        try:
            if self._tasks.thread_at(process.address) == process:
                family.gaps.append(Gap(_STRUCTURE, process.address, str(error)))
        except (MemoryFault, Implausible):
            return

    def _child(self, task: Va, _: tuple[Any, ...]) -> Thread:
        row = self._tasks.thread_at(task)
        if row.pid != row.tgid:
            raise Implausible(f"pid {row.pid}, tgid {row.tgid}: no process is somebody's child")
        return row


def _merge(into: ListWalk[Thread], more: ListWalk[Thread]) -> None:
    into.rows.update(more.rows)
    into.gaps.extend(more.gaps)
    into.retries += more.retries
