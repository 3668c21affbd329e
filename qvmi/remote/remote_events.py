"""What happens in a guest, as a process sees it that has the guest's RAM: it looks at that by itself."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, suppress
from functools import partial

from qvmi.errors import QvmiError
from qvmi.machine.events.event_control import EventControl
from qvmi.machine.events.event_stream import EventStream
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.rows.events import kinds_named

__all__ = ["RemoteEvents"]


class RemoteEvents:
    """This tells what happens in the guest of a remote machine, and who waits for that.

    Nothing is asked of the manager for it: whoever was handed all memory may look at it.

    Args:
        guest: the system that runs; raises why none is known.
        refresh: looks again which system runs.
        epoch: counts resets.
    """

    def __init__(
        self,
        guest: Callable[[], LinuxGuest],
        refresh: Callable[[], Awaitable[object]],
        epoch: Callable[[], int],
    ) -> None:
        self._control = partial(EventControl, guest, refresh, epoch)
        self._watching: set[EventControl] = set()

    @asynccontextmanager
    async def watched(self, kinds: Collection[str] | None) -> AsyncIterator[EventStream]:
        """This iterates what happens while the block lasts; raises as `Machine.events`."""
        control = self._control(kinds_named(kinds))
        self._watching.add(control)
        try:
            await control.begin()
            yield control.stream
        finally:
            self._watching.discard(control)
            await control.close()

    async def close(self) -> None:
        """This ends whatever is watched: who iterates it comes to its end."""
        for control in tuple(self._watching):
            with suppress(QvmiError):  # which its stream raises
                await control.close()
