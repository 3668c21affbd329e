"""A dump where a command expects a machine: what a machine is waited for, a dump answers at once."""

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from qvmi.machine.memory_dump import DumpFacts, MemoryDump
from qvmi.memory.address_space import AddressSpace
from qvmi.memory.physical import PhysicalMemory
from qvmi.semantics.guest_os import Process
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.symbols.layout import Symbols
from qvmi.view import View

if TYPE_CHECKING:
    from qvmi.machine.volatility import VolatilityQueries

__all__ = ["AskedDump"]

Found = TypeVar("Found")


class AskedDump:
    """This has what the commands use of a machine that needs no machine.

    Args:
        dump: what is asked.
    """

    def __init__(self, dump: MemoryDump) -> None:
        self._dump = dump

    @property
    def guest(self) -> LinuxGuest:
        """This is the system that ran in it."""
        return self._dump.guest

    @property
    def symbols(self) -> Symbols:
        """These are the symbols of its kernel."""
        return self._dump.symbols

    @property
    def memory(self) -> PhysicalMemory:
        """This is its physical memory."""
        return self._dump.memory

    @property
    def kernel_space(self) -> AddressSpace:
        """This is its kernel's address space."""
        return self._dump.kernel_space

    @property
    def view(self) -> View:
        """This is its memory with the label that it is a dump's."""
        return self._dump.view

    @cached_property
    def volatility_queries(self) -> "VolatilityQueries":
        """These are the questions to Volatility's plugins about it."""
        from qvmi.machine.volatility import VolatilityQueries

        return VolatilityQueries(lambda: self.guest)

    def user_space(self, process: Process) -> AddressSpace:
        """This is the address space of one of its processes."""
        return self._dump.user_space(process)

    async def facts(self) -> DumpFacts:
        """This is what is known of the file."""
        return self._dump.facts

    async def capture(self, walk: Callable[[LinuxGuest], Found]) -> Found:
        """This does a walk; the guest stands still as it is."""
        return self._dump.capture(walk)

    async def query(self, walk: Callable[[LinuxGuest], Found]) -> Found:
        """This does a walk."""
        return self._dump.capture(walk)
