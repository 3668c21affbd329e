"""What happens in a guest, one look after another: quick ones at what changes often, slow ones at all."""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from qvmi.semantics.linux.events.event_sink import EventSink
from qvmi.semantics.rows.events import GuestEvent
from qvmi.view import View

__all__ = ["EventPart", "EventWatch", "Forks"]


class EventPart(Protocol):
    """This is what watches one kind of structure."""

    def begin(self, sink: EventSink) -> None:
        """This takes note of what is there."""
        ...

    def glance(self, sink: EventSink) -> None:
        """This looks at what changes often, in well below a millisecond."""
        ...

    def rescan(self, sink: EventSink) -> None:
        """This looks at everything."""
        ...


class Forks(Protocol):
    """This accounts for forks."""

    @property
    def forks(self) -> int:
        """This is how many the kernel has counted since the beginning."""
        ...

    found: int
    """How many of them were found."""

    def account(self) -> int:
        """This is how many were missed, for sure."""
        ...


class EventWatch:
    """This watches one guest; whoever has it looks as often as they like.

    Args:
        view: how the guest is looked at.
        parts: what is watched.
        require_current: raises StaleView or MachineGone once there is another guest, or none; asked
            around the slow looks, the view around the quick ones.
        forks: accounts for forks; None where processes are not watched.
    """

    def __init__(
        self,
        view: View,
        parts: Collection[EventPart],
        *,
        require_current: Callable[[], None],
        forks: Forks | None,
    ) -> None:
        self._view = view
        self._require_current = require_current
        self._parts = tuple(parts)
        self._sink = EventSink(view)
        self.forks = forks
        self._glanced = self._rescanned = 0.0

    def begin(self) -> Sequence[GuestEvent]:
        """This takes note of what is there, of which nothing is told but what cannot be seen.

        Raises:
            WalkFailed, MemoryFault: it cannot be looked at.
            StaleView, MachineGone: there is another guest, or none.
        """
        self._require_current()
        self._glanced = self._rescanned = now = self._view.moment()
        self._sink.begin(after=now, at=now)
        for part in self._parts:
            part.begin(self._sink)
        self._require_current()
        return self._sink.taken()

    def glance(self) -> Sequence[GuestEvent]:
        """This looks at what changes often.

        Raises:
            MemoryFault: memory cannot be read any more.
            StaleView, MachineGone: there is another guest, or none.
        """
        self._view.require_current()
        now = self._view.moment()
        sink = self._sink
        sink.begin(after=self._glanced, at=now)
        self._glanced = now
        for part in self._parts:
            part.glance(sink)
        return sink.taken() if sink.events else ()

    def rescan(self) -> Sequence[GuestEvent]:
        """This looks at everything; raises as :meth:`glance`."""
        self._require_current()
        now = self._view.moment()
        self._sink.begin(after=self._rescanned, at=now)
        self._rescanned = now
        for part in self._parts:
            part.rescan(self._sink)
        # A reset in between would make a mixture; what was seen of it is not told.
        self._require_current()
        return self._sink.taken()
