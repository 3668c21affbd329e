"""System calls that lead elsewhere than to the functions that are to handle them.

References: MITRE ATT&CK T1014 Rootkit; what should be in the tables is in
:mod:`qvmi.semantics.linux.hooks.syscall`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from qvmi.codepacks.codepack import Finding, Severity
from qvmi.codepacks.detectors.code_pointer_findings import pointer_findings
from qvmi.memory.physical import PhysicalMemory
from qvmi.policy import Grant
from qvmi.semantics.guest_os import GuestOS

__all__ = ["SystemCalls"]


@dataclass(frozen=True, slots=True)
class SystemCalls:
    """This looks at every entry of the kernel's tables of system calls.

    An entry must be the address of the very function that handles its number; in the tables of
    32-bit calls, that of some function that handles calls.

    Args:
        interval_s: from one look to the next.
    """

    interval_s: float = 1.0

    @property
    def name(self) -> str:
        """This is its name on the bus."""
        return "system-calls"

    @property
    def grants(self) -> frozenset[Grant]:
        """It only reads."""
        return frozenset({Grant.READ_MEMORY})

    def inspect(self, guest: GuestOS, memory: PhysicalMemory) -> Iterable[Finding]:  # noqa: ARG002 - the contract gives it
        """This looks once; nothing of it changes in a healthy guest, whatever happens there."""
        return pointer_findings(guest.system_calls(), severity=Severity.CRITICAL)
