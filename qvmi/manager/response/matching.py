"""Which playbooks an alert leads to: no clock, no waiting, nothing but what was told."""

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from qvmi.codepacks.alert import Alert, AlertState
from qvmi.codepacks.codepack import Finding, Severity
from qvmi.manager.response.episodes import AlertKey, Episodes, key_of
from qvmi.manager.response.playbook import HOUR_S, Playbook, Same, When

__all__ = ["Case", "Matcher", "Past", "things"]

MAX_WAITING: Final = 256
"""Alerts that wait for another codepack's, for each playbook; the oldest go first."""

_SEVERITIES: Final = tuple(Severity)


@dataclass(frozen=True, slots=True)
class Case:
    """This is what leads to a run of a playbook.

    Args:
        playbook: which one.
        alerts: what leads to it: one, or the two that agree.
        withheld: why it is not run all the same; empty where it is.
    """

    playbook: Playbook
    alerts: tuple[Alert, ...]
    withheld: str = ""


@dataclass(frozen=True, slots=True)
class Past:
    """This is a run that there was before.

    Args:
        playbook: the name of which one.
        alerts: what had led to it.
        cleared: those of them that were cleared since, by what they are known by.
        began: when it began, seconds on the clock of the matcher.
    """

    playbook: str
    alerts: tuple[Alert, ...]
    cleared: Collection[AlertKey]
    began: float


def things(finding: Finding, same: Same) -> frozenset[int]:
    """These are the pids, or the addresses, that a finding is about."""
    if same is Same.ADDRESS:
        return frozenset(one.address for one in finding.evidence if one.address is not None)
    pids = (one.facts.get("pid") for one in finding.evidence)
    return frozenset(pid for pid in pids if isinstance(pid, int) and not isinstance(pid, bool))


class Matcher:
    """This knows what was alerted, and says which playbooks are to be run for it.

    Args:
        playbooks: all there are.
        past: the runs that there were before, in order.
    """

    def __init__(self, playbooks: Sequence[Playbook], past: Iterable[Past] = ()) -> None:
        self._books = tuple(_Book(playbook) for playbook in playbooks)
        by_name = {book.playbook.name: book for book in self._books}
        for run in past:
            if run.playbook in by_name:
                by_name[run.playbook].remember(run)

    def offer(self, alert: Alert, *, now: float) -> list[Case]:
        """This takes in an alert, and gives what it leads to.

        Args:
            alert: raised or cleared.
            now: seconds on a clock that never goes back.
        """
        if alert.state is AlertState.CLEARED:
            for book in self._books:
                book.clear(alert)
            return []
        return [case for book in self._books if (case := book.offer(alert, now)) is not None]


@dataclass(slots=True)
class _Book:
    """What is known for one playbook."""

    playbook: Playbook
    waiting: deque[tuple[float, Alert]] = field(default_factory=lambda: deque(maxlen=MAX_WAITING))
    episodes: Episodes = field(default_factory=Episodes)
    runs: deque[float] = field(default_factory=deque)

    def offer(self, alert: Alert, now: float) -> Case | None:
        alerts = self._led_to(alert, now)
        if not alerts or not self.episodes.begin(alerts):
            return None
        while self.runs and now - self.runs[0] >= HOUR_S:
            self.runs.popleft()
        most = self.playbook.at_most_per_hour
        if len(self.runs) >= most:
            return Case(self.playbook, alerts, f"it was run {most} times in an hour")
        self.runs.append(now)
        return Case(self.playbook, alerts)

    def remember(self, run: Past) -> None:
        self.episodes.remember(run.alerts)
        for key in run.cleared:
            self.episodes.end(key)
        self.runs.append(run.began)

    def clear(self, cleared: Alert) -> None:
        """This waits for nobody to agree with an alert any more that was cleared, which may come again."""
        self.episodes.end(key_of(cleared))
        kept = [one for one in self.waiting if key_of(one[1]) != key_of(cleared)]
        self.waiting.clear()
        self.waiting.extend(kept)

    def _led_to(self, alert: Alert, now: float) -> tuple[Alert, ...]:
        when = self.playbook.when
        agree = when.agree
        if agree is None:
            return (alert,) if _fits(alert, when) else ()
        is_second = alert.codepack == agree.codepack
        if not is_second and not _fits(alert, when):
            return ()
        about = things(alert.finding, agree.same)
        for at, other in reversed(self.waiting):
            agrees = (other.codepack == agree.codepack) != is_second
            in_time = now - at <= agree.within_s
            if agrees and in_time and about & things(other.finding, agree.same):
                return (other, alert) if is_second else (alert, other)
        self.waiting.append((now, alert))
        return ()


def _fits(alert: Alert, when: When) -> bool:
    finding = alert.finding
    if when.codepack is not None and when.codepack != alert.codepack:
        return False
    if _SEVERITIES.index(finding.severity) < _SEVERITIES.index(when.severity):
        return False
    technique = when.technique
    return (
        technique is None
        or finding.technique.split(".")[0] == technique
        or (finding.technique == technique)
    )
