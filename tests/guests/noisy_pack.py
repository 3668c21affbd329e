"""A codepack that finds something new in every few looks, so that there are always alerts under way."""

from collections.abc import Iterable

from qvmi.codepacks.codepack import Finding, Observation, Severity
from qvmi.memory.physical import PhysicalMemory
from qvmi.policy import Grant
from qvmi.semantics.guest_os import GuestOS

__all__ = ["Noisy"]

LOOKS = 4


class Noisy:
    name = "noisy"
    grants = frozenset({Grant.READ_MEMORY})

    def __init__(self, interval_s: float) -> None:
        self.interval_s = interval_s
        self._looks = 0

    def inspect(self, guest: GuestOS, memory: PhysicalMemory) -> Iterable[Finding]:
        del memory
        self._looks += 1
        count = len(guest.processes().items)
        seen = Observation(view="processes", present=True, facts={"count": count})
        yield Finding(
            claim="there are processes",
            severity=Severity.LOW,
            technique="T1014",
            key=f"look {self._looks // LOOKS}",
            evidence=(seen,),
        )
