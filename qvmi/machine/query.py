"""Looks at a guest that are made in threads: at any memory, with a deadline, and to be cancelled."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final, TypeVar

import msgspec

from qvmi.machine.holding.pause import Pause, PauseMaker
from qvmi.machine.ways.remote_memory import RemoteMemory
from qvmi.machine.worker import WatchedMemory, in_worker
from qvmi.memory.physical import PhysicalMemory
from qvmi.semantics.guest_os import Listing
from qvmi.view import Taken, View

__all__ = ["QUERY_TIMEOUT_S", "Query", "captured", "with_pause"]

Result = TypeVar("Result")

QUERY_TIMEOUT_S: Final = 60.0
"""How long a query may take unless told otherwise. The longest, writing all symbols and types of a
kernel to a file that is read through the monitor, takes some ten seconds."""


class Query:
    """This looks at one machine's guest in a thread.

    Args:
        run_control: stops the guest, where its memory cannot be read otherwise.
        view_of: makes a view of a pause.
        remote: the memory, where it has to be asked for; None where it is direct.
        timeout_s: how long a look may take.
        still: whether a guest that stands still for each read does so from the first to the last.
    """

    def __init__(
        self,
        run_control: PauseMaker,
        view_of: Callable[[Pause], View],
        remote: RemoteMemory | None,
        *,
        timeout_s: float,
        still: bool,
    ) -> None:
        self._run_control = run_control
        self._view_of = view_of
        self._remote = remote
        self._timeout_s = timeout_s
        self._holds = still and remote is not None and remote.stops_guest

    async def of(self, look: Callable[[View], Result], live: View, paused: View | None) -> Result:
        """This looks, and is what was found; the thread has ended when this returns or raises.

        Args:
            look: the look.
            live: the machine as it runs.
            paused: the view of the pause that goes on, if any.

        Raises:
            QueryTimeout: it took longer.
            QvmiError: whatever the look raises, or QEMU did not answer.
        """
        if paused is not None or not self._holds:
            return await self._through(paused or live, look)
        async with self._run_control.paused() as pause:
            view = replace(self._view_of(pause), vcpus=live.vcpus)
            answer = await self._through(captured(view, view.memory), look)
        return with_pause(answer, pause.lasted_s)

    async def _through(self, view: View, look: Callable[[View], Result]) -> Result:
        """This looks through a view, whose reads end with the look that they are made for."""
        seen = replace(view, memory=WatchedMemory(view.memory)) if self._remote is None else view
        return await in_worker(lambda: look(seen), timeout_s=self._timeout_s)


def captured(view: View, memory: PhysicalMemory) -> View:
    """This is the view of a pause that was made for one look, over a memory."""
    label = msgspec.structs.replace(view.provenance, taken=Taken.CAPTURED)
    return replace(view, memory=memory, provenance=label)


def with_pause(answer: Result, lasted_s: float) -> Result:
    """This writes onto a listing how long its pause was in all, which was not known within it."""
    if not isinstance(answer, Listing):
        return answer
    label = msgspec.structs.replace(answer.provenance, pause_s=lasted_s)
    return replace(answer, provenance=label)
