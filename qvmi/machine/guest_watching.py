"""What tells what happens in a guest: without stopping it, or exactly, by breakpoints."""

from abc import abstractmethod
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from qvmi.machine.intervention import Intervention
from qvmi.semantics.linux.guest import LinuxGuest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

    from qvmi.machine.events.event_stream import EventStream

__all__ = ["GuestWatching"]


class GuestWatching(Intervention):
    """This is the part of a :class:`~qvmi.machine.machine.Machine` that tells what happens in its guest.

    It is an :class:`~qvmi.machine.events.event_stream.EventSource`.
    """

    @property
    @abstractmethod
    def guest(self) -> LinuxGuest:
        """This is the operating system that runs in the machine."""

    @property
    @abstractmethod
    def epoch(self) -> int:
        """This counts how often the machine was reset since the attach."""

    @abstractmethod
    async def refresh(self) -> None:
        """This looks again which system runs."""

    @asynccontextmanager
    async def events(self, kinds: "Collection[str] | None" = None) -> "AsyncIterator[EventStream]":
        """This iterates what happens in the guest while the block lasts, without stopping it.

        Kernel memory is looked at some thousand times a second, in a thread that uses at most a
        tenth of a core: forks within milliseconds, the rest in some 50 ms. What was not seen is said, as
        far as the kernel counts it. Behind a reset it goes on with the next system.

        Args:
            kinds: which kinds are wanted, by their names in `EventKind`; None for all.

        Raises:
            UsageError: there is no such kind.
            NotDirect: memory that has to be asked for cannot be looked at so often.
            UnknownGuest, StaleView, PolicyDenied: as :attr:`guest`.
            SymbolsError, WalkFailed, MemoryFault: the kernel lacks what this needs, or lies about it.
        """
        from qvmi.machine.events.event_control import (  # noqa: PLC0415 - import time, for a rare need
            EventControl,
        )
        from qvmi.semantics.rows.events import kinds_named  # noqa: PLC0415 - as above

        wanted = kinds_named(kinds)
        _ = self.guest  # which may not be looked at, or not so
        control = EventControl(
            self._control.recognition.require, self.refresh, lambda: self.epoch, wanted
        )
        self._control.watching.add(control)
        try:
            await control.begin()
            yield control.stream
        finally:
            self._control.watching.discard(control)
            await control.close()

    @asynccontextmanager
    async def exact_events(
        self, kinds: "Collection[str] | None" = None
    ) -> "AsyncIterator[EventStream]":
        """This iterates each start, exec and exit of a process while the block lasts, by breakpoints.

        None is missed, and each stops the guest: some 5 ms under TCG, for threads too. What that has
        cost, the stream's account tells.

        Args:
            kinds: which kinds are wanted, of those of processes; None for all of these.

        Raises:
            UsageError: a kind that no breakpoint is for, or no kind; or QEMU starts no gdbstub.
            PolicyDenied, PauseError, AttachError, GdbstubRequestFailed: as ``breakpoints``.
            SymbolNotFound, UnknownGuest, StaleView, NotDirect: the guest cannot be watched so.
        """
        from qvmi.machine.exact_events import (  # noqa: PLC0415 - import time, for a rare need
            ExactEvents,
        )
        from qvmi.semantics.rows.events import (  # noqa: PLC0415 - as above
            PROCESS_KINDS,
            kinds_named,
        )

        wanted = PROCESS_KINDS if kinds is None else kinds_named(kinds)
        exact = ExactEvents(self.guest, self._control, wanted)
        async with exact.watched(self.breakpoints) as stream:
            yield stream
