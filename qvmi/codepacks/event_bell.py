"""Codepacks that look because something happened in the guest: one watching of events for all of them."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from qvmi.codepacks.runner import Runner
from qvmi.errors import MachineGone, QvmiError, UsageError
from qvmi.machine.events.event_stream import EventSource
from qvmi.semantics.rows.events import EventKind, GuestEvent

__all__ = ["EventBell"]

RETRY_S: Final = 5.0
"""Between two attempts to watch a guest that could not be watched, such as one that boots."""

_KINDS: Final = frozenset(map(str, EventKind))

_log: Final = logging.getLogger(__name__)


class EventBell:
    """This wakes runners by the events that their codepacks name.

    Args:
        source: tells what happens; None where nothing does.
        runners: of the codepacks.
    """

    def __init__(self, source: EventSource | None, runners: Sequence[Runner]) -> None:
        self._source = source
        self._runners = [runner for runner in runners if runner.triggers.events]

    async def run(self) -> None:
        """This rings until the machine is gone; where events cannot be watched, that is told."""
        if not self._runners:
            return
        kinds = frozenset().union(*(runner.triggers.events for runner in self._runners))
        while True:
            try:
                await self._follow(kinds)
            except MachineGone:
                return
            except QvmiError as error:
                _log.debug("events cannot be watched: %s", error)
                self._tell(str(error))
            await asyncio.sleep(RETRY_S)

    async def _follow(self, kinds: frozenset[EventKind]) -> None:
        if self._source is None:
            raise UsageError("nothing here tells of them")
        async with self._source.events(kinds) as events:
            self._tell("")
            async for event in events:
                self._ring(event)

    def _ring(self, event: GuestEvent) -> None:
        """This wakes those who named it; what tells of losses or of another guest wakes all."""
        kind = type(event).__struct_config__.tag
        for runner in self._runners:
            if kind not in _KINDS or kind in runner.triggers.events:
                runner.wake.ring()

    def _tell(self, problem: str) -> None:
        for runner in self._runners:
            runner.note_events(problem)
