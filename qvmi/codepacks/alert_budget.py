"""How many alerts one codepack may raise: a guest that changes ever on must not bury what matters."""

from typing import Final

__all__ = ["AlertBudget"]

BURST: Final = 100
"""Alerts at once: more than a person reads, far less than what the bus takes for a flood."""

PER_S: Final = 1.0
"""Alerts a second in the long run, 60 a minute."""


class AlertBudget:
    """This is filled as time goes by and emptied by alerts.

    Args:
        burst: alerts at once; None for :data:`BURST`.
        per_s: alerts a second in the long run; None for :data:`PER_S`.
    """

    def __init__(self, *, burst: int | None = None, per_s: float | None = None) -> None:
        self._burst = BURST if burst is None else burst
        self._per_s = PER_S if per_s is None else per_s
        self._left = float(self._burst)
        self._asked: float | None = None

    def room(self, now: float) -> int:
        """This is how many alerts may be raised now.

        Args:
            now: on a clock that is never set, in seconds.
        """
        passed = 0.0 if self._asked is None else max(0.0, now - self._asked)
        self._asked = now
        self._left = min(float(self._burst), self._left + passed * self._per_s)
        return int(self._left)

    def spend(self, alerts: int) -> None:
        """This takes alerts that were raised off what may be."""
        self._left -= alerts
