"""Where the parts that watch one guest put what they see, with how and when it was seen."""

from collections.abc import Iterable
from typing import Final

import msgspec

from qvmi.semantics.guest_os import Gap
from qvmi.semantics.rows.events import GuestEvent, NotSeen
from qvmi.view import Provenance, View

__all__ = ["EventSink"]

_MAX_GAPS: Final = 1000
"""Gaps that are remembered, so that each is told once; a guest with more is wrong everywhere."""


class EventSink:
    """This collects the events of one look after another.

    Args:
        view: how the guest is looked at.

    Attributes:
        events: those of this look.
        after: when what is looked at was looked at the last time before, in seconds.
        at: when it is looked at.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self.events: list[GuestEvent] = []
        self.after = self.at = 0.0
        self._label: Provenance | None = None
        self._gaps: dict[str, set[Gap]] = {}

    def begin(self, *, after: float, at: float) -> None:
        """This begins a look."""
        self.after, self.at = after, at
        self._label = None

    def label(self) -> Provenance:
        """This says how this look is taken."""
        if self._label is None:
            self._label = msgspec.structs.replace(self._view.provenance, at=self.at)
        return self._label

    def put(self, event: GuestEvent) -> None:
        """This takes an event in."""
        self.events.append(event)

    def taken(self) -> list[GuestEvent]:
        """This hands the events over."""
        events, self.events = self.events, []
        return events

    def gaps(self, part: str, gaps: Iterable[Gap]) -> None:
        """This tells of what a part could not look at, and told nobody of at its last look."""
        before = self._gaps.get(part, set())
        now: set[Gap] = set()
        for gap in gaps:
            if len(now) == _MAX_GAPS:
                break
            now.add(gap)
        self._gaps[part] = now
        for gap in now - before:
            self.put(NotSeen(self.after, self.label(), gap.structure, gap.address, gap.reason))
