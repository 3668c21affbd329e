"""Code of the kernel and of its modules that is not as it was, or not as the kernel changes it itself.

References: MITRE ATT&CK T1014 Rootkit; what the kernel changes itself is in
:mod:`qvmi.semantics.linux.hooks.patch_sites`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from qvmi.codepacks.codepack import MAX_KEY_LENGTH, Finding, Observation, Severity
from qvmi.memory.physical import PhysicalMemory
from qvmi.policy import Grant
from qvmi.semantics.guest_os import CodeBaseline, CodeChange, GuestOS

__all__ = ["KernelText"]

_TECHNIQUE: Final = "T1014"

_PASSING_S: Final = 10.0
"""Longest time for which the kernel is believed to be in the midst of a change of its code.

It takes microseconds for each place, and the whole of a function tracer's start some seconds on an
emulated machine; a host with too much to do may take the vCPU away in the midst of it.
"""


@dataclass(frozen=True, slots=True)
class KernelText:
    """This compares code and constants with what they were at first sight.

    It keeps a copy of the code from one look to the next, some 35 MB.

    Args:
        interval_s: from one look to the next.
        baseline: what was seen before.
    """

    interval_s: float = 5.0
    baseline: CodeBaseline = field(default_factory=CodeBaseline, compare=False, repr=False)

    @property
    def name(self) -> str:
        """This is its name on the bus."""
        return "kernel-text"

    @property
    def grants(self) -> frozenset[Grant]:
        """It only reads."""
        return frozenset({Grant.READ_MEMORY})

    def inspect(self, guest: GuestOS, memory: PhysicalMemory) -> Iterable[Finding]:  # noqa: ARG002 - the contract gives it
        """This looks once, and where something is wrong once more: a finding is in both answers.

        What a place leads to may have been made just before; at the first look it can only judge the
        places that the kernel changes.
        """
        first = {row.address for row in guest.code_changes(self.baseline)}
        if not first:
            return []
        again = guest.code_changes(self.baseline)
        return [_finding(row) for row in again if row.address in first]


def _finding(row: CodeChange) -> Finding:
    what = f"{row.symbol or f'{row.address:#x}'} of {row.region}"
    place = f"a place of {row.site}" if row.site else "code that nothing changes"
    return Finding(
        claim=f"{what} was overwritten, {place}: {row.problem}",
        severity=Severity.CRITICAL,
        technique=_TECHNIQUE,
        # Not what is there: nobody is safe who changes it at each look.
        key=f"{row.site or 'code'} at {row.address:#x} of {row.region}"[:MAX_KEY_LENGTH],
        evidence=(
            Observation(
                view="memory",
                present=True,
                address=row.address,
                facts={"bytes": row.found.hex(" "), "symbol": row.symbol, "site": row.site},
            ),
            Observation(
                view="first sight" if row.expected else "what the kernel may put there",
                present=False,
                address=row.address,
                facts={"bytes": row.expected.hex(" "), "problem": row.problem},
            ),
        ),
        settle_s=_PASSING_S if row.is_passing else 0.0,
    )
