"""A dump where a command expects a machine: what a machine is waited for, a dump answers at once."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from qvmi.machine.memory_dump import DumpFacts, MemoryDump
from qvmi.memory.physical import PhysicalMemory
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.view import View

if TYPE_CHECKING:
    from qvmi.machine.scanning.scan import Scan
    from qvmi.machine.volatility import VolatilityQueries

__all__ = ["AskedDump"]

Found = TypeVar("Found")


class AskedDump:
    """This has what the commands use of a machine that needs no machine.

    Args:
        dump: what is asked.
    """

    stood_still_s = 0.0  # nobody was stopped for it
    epoch = 0  # it is never reset

    def __init__(self, dump: MemoryDump) -> None:
        self._dump = dump

    @property
    def guest(self) -> LinuxGuest:
        """This is the system that ran in it; UnknownGuest where none was recognised."""
        return self._dump.guest

    @property
    def memory(self) -> PhysicalMemory:
        """This is the memory in the file."""
        return self._dump.memory

    async def refresh(self) -> None:
        """This finds nothing new."""

    async def run_state(self) -> str:
        """This is a state that no machine leaves."""
        return "dumped"

    @cached_property
    def volatility_queries(self) -> "VolatilityQueries":
        """These are the questions to Volatility's plugins about it."""
        from qvmi.machine.volatility import VolatilityQueries

        return VolatilityQueries(lambda: self._dump.guest)

    @property
    def scan(self) -> "Callable[..., Scan]":
        """This scans its memory, as a machine's."""
        return self._dump.scan

    async def facts(self) -> DumpFacts:
        """This is what is known of the file."""
        return self._dump.facts

    async def capture(self, walk: Callable[[LinuxGuest], Found]) -> Found:
        """This does a walk; the guest stands still as it is."""
        return self._dump.capture(walk)

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[View]:
        """This is its view: it stands still as it is."""
        yield self._dump.view

    async def query(self, look: Callable[[LinuxGuest], Found], **_: object) -> Found:
        """This looks at the system that ran in it; how long that may take is a machine's concern."""
        return look(self._dump.guest)

    async def query_view(self, look: Callable[[View], Found]) -> Found:
        """This looks at its memory with the label that it is a dump's."""
        return look(self._dump.view)
