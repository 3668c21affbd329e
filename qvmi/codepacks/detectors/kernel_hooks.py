"""Functions that are hooked into the kernel and are nobody's code.

References: MITRE ATT&CK T1014 Rootkit; where one can hook in is in :mod:`qvmi.semantics.linux.hooks.hooks`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from qvmi.codepacks.codepack import Finding, Severity
from qvmi.codepacks.detectors.code_pointer_findings import pointer_findings
from qvmi.codepacks.detectors.seen_twice import seen_twice
from qvmi.memory.physical import PhysicalMemory
from qvmi.policy import Grant
from qvmi.semantics.guest_os import GuestOS

__all__ = ["KernelHooks"]

_HALF_DONE_S: Final = 5.0
"""Longest time for which a hook is believed to be on its way in or out.

Lists of hooks are read one after the other, and memory of one that has gone is used again.
"""


@dataclass(frozen=True, slots=True)
class KernelHooks:
    """This looks at every function that is hooked in: tracing, filtering and asking are no alarm.

    Args:
        interval_s: from one look to the next.
    """

    interval_s: float = 5.0

    @property
    def name(self) -> str:
        """This is its name on the bus."""
        return "kernel-hooks"

    @property
    def grants(self) -> frozenset[Grant]:
        """It only reads."""
        return frozenset({Grant.READ_MEMORY})

    def inspect(self, guest: GuestOS, memory: PhysicalMemory) -> Iterable[Finding]:  # noqa: ARG002 - the contract gives it
        """This looks once, and where a hook is nobody's once more: a finding is in both answers."""
        return seen_twice(_hooked, guest)


def _hooked(guest: GuestOS) -> list[Finding]:
    return pointer_findings(guest.hooks(), severity=Severity.HIGH, settle_s=_HALF_DONE_S)
