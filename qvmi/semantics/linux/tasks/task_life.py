"""Whether what lies at an address is a task that lives, or one being made, or what is left of one.

References: Linux kernel/fork.c (``dup_task_struct``, ``put_task_struct``), kernel/exit.c
(``release_task``, ``__exit_signal``, ``__unhash_process``).
"""

from collections.abc import Iterable, Iterator

from qvmi.addr import Va
from qvmi.errors import MemoryFault
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Thread
from qvmi.semantics.linux.structures.list import Implausible
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.semantics.linux.tasks.task import Tasks
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["LivingTasks"]


class LivingTasks:
    """This makes rows of the tasks at addresses that may hold none.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        tasks: makes the rows.

    Raises:
        SymbolsError: the profile lacks what this needs.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols, tasks: Tasks) -> None:
        def task(name: str) -> int:
            return field_offset(symbols, "task_struct", name)

        self._tasks = tasks
        self._read = compile_reader(
            space,
            (task("usage"), "I"),
            (task("thread_pid"), "Q"),
            (task("sighand"), "Q"),
        )

    def at(self, addresses: Iterable[int]) -> Iterator[Thread]:
        """This iterates the tasks at addresses; where none lives there is nothing.

        A task that was released has neither a ``struct pid`` nor handlers of signals any more, one
        that was freed no users: none of them runs ever again. One that says it is dead and has all
        three is released within moments, or lies.
        """
        for address in dict.fromkeys(addresses):
            try:
                users, pid, handlers = self._read(address)
                if users and pid and handlers:
                    yield self._tasks.thread_at(Va(address))
            except (MemoryFault, Implausible):
                continue

    def at_work(self, addresses: Iterable[int]) -> Iterator[Thread]:
        """This iterates the tasks that CPUs have: whatever they say of themselves, they live."""
        for address in dict.fromkeys(addresses):
            try:
                yield self._tasks.thread_at(Va(address))
            except (MemoryFault, Implausible):
                continue
