"""Interrupts and exceptions that lead elsewhere than to the code that handles them.

References: MITRE ATT&CK T1014 Rootkit; what should be in the table is in
:mod:`qvmi.semantics.linux.hooks.idt`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from qvmi.codepacks.codepack import Finding, Severity
from qvmi.codepacks.detectors.code_pointer_findings import pointer_findings
from qvmi.memory.physical import PhysicalMemory
from qvmi.policy import Grant
from qvmi.semantics.guest_os import GuestOS

__all__ = ["InterruptTable"]


@dataclass(frozen=True, slots=True)
class InterruptTable:
    """This looks at every gate of the interrupt descriptor table, and at where vCPUs have theirs.

    Args:
        interval_s: from one look to the next.
    """

    interval_s: float = 1.0

    @property
    def name(self) -> str:
        """This is its name on the bus."""
        return "interrupt-table"

    @property
    def grants(self) -> frozenset[Grant]:
        """It only reads."""
        return frozenset({Grant.READ_MEMORY})

    def inspect(self, guest: GuestOS, memory: PhysicalMemory) -> Iterable[Finding]:  # noqa: ARG002 - the contract gives it
        """This looks once; gates are set while the kernel starts, and when a driver of its own comes."""
        return pointer_findings(guest.interrupts(), severity=Severity.CRITICAL)
