"""What happens in a guest, as a process sees it that has the guest's RAM: it looks at that by itself."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from qvmi.machine.event_control import EventControl
from qvmi.machine.event_stream import EventStream
from qvmi.remote.remote_machine import RemoteMachine
from qvmi.semantics.rows.events import kinds_named

__all__ = ["RemoteEvents"]


class RemoteEvents:
    """This tells what happens in the guest of a remote machine; an `EventSource`.

    Args:
        machine: its memory is looked at here, by a thread that uses at most a tenth of a core.
    """

    def __init__(self, machine: RemoteMachine) -> None:
        self._machine = machine

    @asynccontextmanager
    async def events(self, kinds: Collection[str] | None = None) -> AsyncIterator[EventStream]:
        """This iterates what happens while the block lasts; raises as `Machine.events`."""
        wanted = kinds_named(kinds)
        machine = self._machine
        control = EventControl(
            lambda: machine.guest, machine.refresh, lambda: machine.epoch, wanted
        )
        try:
            await control.begin()
            yield control.stream
        finally:
            await control.close()
