"""Settings that make the kernel start a program, as root, which anybody may have put there.

References: MITRE ATT&CK T1546 Event Triggered Execution; core(5); Linux
Documentation/admin-guide/sysctl/kernel.rst (``modprobe``, ``core_pattern``, ``poweroff_cmd``).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from qvmi.codepacks.codepack import Finding, Observation, Severity
from qvmi.memory.physical import PhysicalMemory
from qvmi.policy import Grant
from qvmi.semantics.guest_os import GuestOS, KernelSetting

__all__ = ["KernelSettings"]

_TECHNIQUE: Final = "T1546"
_ANYBODYS: Final = (
    *("/tmp/", "/var/tmp/", "/dev/", "/proc/", "/sys/", "/run/user/", "/run/lock/", "/home/"),  # noqa: S108 - what is looked for
    *("/var/www/", "/var/lock/", "/var/crash/", "/mnt/", "/media/"),
)
"""Folders in which others than root can put a program, or a way to one."""
_STARTED_FROM: Final = ("/etc/", "/var/spool/cron/", "/root/", "/lib/", "/usr/", "/bin/", "/sbin/")
"""Folders whose files are run or believed: a core file there is one that its owner has written."""
_CORE_PATTERN: Final = "core_pattern"


@dataclass(frozen=True, slots=True)
class KernelSettings:
    """This looks at what the kernel would start when a module is wanted, a program dies, or power fails.

    Args:
        interval_s: from one look to the next.
    """

    interval_s: float = 1.0

    @property
    def name(self) -> str:
        """This is its name on the bus."""
        return "kernel-settings"

    @property
    def grants(self) -> frozenset[Grant]:
        """It only reads."""
        return frozenset({Grant.READ_MEMORY})

    def inspect(self, guest: GuestOS, memory: PhysicalMemory) -> Iterable[Finding]:  # noqa: ARG002 - the contract gives it
        """This looks once; nothing of it passes by itself."""
        judged = ((row, _problem(row)) for row in guest.settings())
        return [_finding(row, problem) for row, problem in judged if problem]


def _problem(row: KernelSetting) -> str:
    """This says why a setting is not a system's own; empty where it may be."""
    if row.runs:
        return _of_program(row.runs)
    path = "/" + "/".join(part for part in row.value.split("/") if part not in {"", "."})
    is_there = row.name == _CORE_PATTERN and row.value.startswith("/")
    if is_there and (path.startswith(_STARTED_FROM) or ".." in path.split("/")):
        return "core files are written where programs are run from"
    return ""


def _of_program(program: str) -> str:
    if not program.isprintable():
        return "its program's name cannot be printed"
    if not program.startswith("/"):
        return "its program is looked for where somebody else is"
    parts = [part for part in program.split("/") if part not in {"", "."}]
    if ".." in parts:
        return "its program is named by a detour"
    if ("/" + "/".join(parts)).startswith(_ANYBODYS):
        return "its program is where anybody may put one"
    return ""


def _finding(row: KernelSetting, problem: str) -> Finding:
    return Finding(
        claim=f"{row.name} is {row.value!r}: {problem}",
        severity=Severity.HIGH,
        technique=_TECHNIQUE,
        key=row.name,  # whatever it is set to
        evidence=(
            Observation(
                view=row.name,
                present=True,
                address=row.address,
                facts={"value": row.value, "runs": row.runs},
            ),
            Observation(view="where a system has its programs", present=False),
        ),
    )
