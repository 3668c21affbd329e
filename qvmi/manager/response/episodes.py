"""Episodes: an alert is raised, perhaps told again, and cleared; what is raised behind that is another.

What an alert is known by is the same in all its episodes, which differ in when it was first seen. That is
kept with an alert that stands, but a codepack that has forgotten it raises it with another time; so a new
time makes a new episode only behind a clearance, and a clearance only with a new time.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from qvmi.codepacks.alert import Alert

__all__ = ["AlertKey", "Episodes", "key_of"]

MAX_KEYS: Final = 10_000
"""Alerts that are remembered; those go first that have led to nothing for longest."""

MAX_RAISED: Final = 8
"""Times at which an alert was first seen that are remembered; what is told again are the last ones."""

AlertKey = tuple[str, str]
"""A codepack's name, and the key of its finding."""


def key_of(alert: Alert) -> AlertKey:
    """This is what an alert is known by."""
    return alert.codepack, alert.finding.key


class Episodes:
    """This knows the episodes of alerts that have led to something.

    Which of them stand does not depend on clocks: times are compared for being the same alone.
    """

    def __init__(self) -> None:
        self._known: dict[AlertKey, _Known] = {}

    def begin(self, alerts: Sequence[Alert]) -> bool:
        """This takes in alerts that lead to something, and tells whether none of them did before.

        What none of them did before counts as done by now.
        """
        known = [(self._known.get(key_of(alert)), alert) for alert in alerts]
        if any([one is not None and one.is_told_again(alert) for one, alert in known]):  # noqa: C419 - each is told
            return False
        self.remember(alerts)
        return True

    def remember(self, alerts: Iterable[Alert]) -> None:
        """This takes in alerts that have led to something."""
        for alert in alerts:
            key = key_of(alert)
            known = self._known.pop(key, None) or _Known()
            known.first_seen.append(alert.first_seen)
            known.stands = True
            self._known[key] = known
        while len(self._known) > MAX_KEYS:
            del self._known[next(iter(self._known))]

    def end(self, key: AlertKey) -> None:
        """This takes in that an alert was cleared."""
        if key in self._known:
            self._known[key].stands = False


@dataclass(slots=True)
class _Known:
    """What is known of one alert.

    Args:
        first_seen: when it was, each time that it was raised.
        stands: whether it was not cleared since.
    """

    first_seen: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_RAISED))
    stands: bool = True

    def is_told_again(self, alert: Alert) -> bool:
        """This tells whether an alert is of an episode that is known; then it remembers when it was."""
        if alert.first_seen in self.first_seen:
            return True
        if self.stands:
            self.first_seen.append(alert.first_seen)
        return self.stands
