"""What can be scanned: a machine, or a dump in the shape of one."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from qvmi.machine.worker import in_worker
from qvmi.memory.physical import PhysicalMemory
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.view import View

__all__ = ["DumpTarget", "OpenedDump", "ScanTarget"]

Result = TypeVar("Result")


class ScanTarget(Protocol):
    """This is what is scanned."""

    @property
    def memory(self) -> PhysicalMemory:
        """This is the guest's physical memory."""
        ...

    @property
    def view(self) -> View:
        """This is a look at it."""
        ...

    async def query(self, look: Callable[[LinuxGuest], Result], *, timeout_s: float) -> Result:
        """This looks at the system that runs in it, in a thread."""
        ...

    async def query_view(self, look: Callable[[View], Result]) -> Result:
        """This looks at its memory, in a thread."""
        ...


class OpenedDump(Protocol):
    """This is what a scan needs of a dump."""

    memory: PhysicalMemory

    @property
    def view(self) -> View:
        """This is a look at it."""
        ...

    @property
    def guest(self) -> LinuxGuest:
        """This is the system that ran in it."""
        ...


class DumpTarget:
    """This is a dump as something that is asked in threads.

    Args:
        dump: which is for one thread at a time, and while a scan waits for another it uses none.
    """

    def __init__(self, dump: OpenedDump) -> None:
        self._dump = dump

    @property
    def memory(self) -> PhysicalMemory:
        """This is the guest's physical memory."""
        return self._dump.memory

    @property
    def view(self) -> View:
        """This is a look at it."""
        return self._dump.view

    async def query(self, look: Callable[[LinuxGuest], Result], *, timeout_s: float) -> Result:
        """This looks at the system that ran in it."""
        return await in_worker(lambda: look(self._dump.guest), timeout_s=timeout_s)

    async def query_view(self, look: Callable[[View], Result]) -> Result:
        """This looks at its memory."""
        return await in_worker(lambda: look(self._dump.view))
