"""Processes that one of the kernel's structures shows and the other does not.

The kernel finds a process in two ways that nothing keeps in step but its own code: the list of all
tasks (``init_task.tasks``), which schedulers and signals to everybody walk, and the pid namespace's
radix tree (``init_pid_ns.idr``), which /proc, and so ``ps``, reads. A process cut out of one of
them goes on running, and hides from whoever asks that one.

References: kernel/fork.c copy_process(), kernel/exit.c __unhash_process(), kernel/pid.c alloc_pid();
MITRE ATT&CK T1014 Rootkit.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

from qvmi.codepacks.codepack import Finding, Observation, Severity
from qvmi.memory.physical import PhysicalMemory
from qvmi.policy import Grant
from qvmi.semantics.guest_os import GuestOS, Listing, Process
from qvmi.view import Taken

__all__ = ["HiddenProcesses"]

_TASK_LIST: Final = "init_task.tasks"
_PID_IDR: Final = "init_pid_ns.idr"
_TECHNIQUE: Final = "T1014"
_EXITING: Final = "X"

_HALF_DONE_S: Final = 5.0
"""Longest time for which a process being born or dying is believed to be in the task list alone.

The kernel links a process into the list before its pid, and unlinks it after, within a microsecond.
But a host with too much to do may take the vCPU away in the midst of it: 60 ms were seen on one with
five times more work than cores.
"""


@dataclass(frozen=True, slots=True)
class HiddenProcesses:
    """This compares the task list with the pid namespace.

    It sees a process that is in one of the two: one that is missing in the task list after two
    looks, one that is missing in the pid namespace after some seconds, see `_HALF_DONE_S`. It does
    not see one that is in neither, nor threads.

    Args:
        interval_s: from one look to the next. What is born or dies while a look goes on is in one
            listing only; the next look, at least this much later, finds it in both or in none.
    """

    interval_s: float = 1.0

    @property
    def name(self) -> str:
        """This is its name on the bus."""
        return "hidden-processes"

    @property
    def grants(self) -> frozenset[Grant]:
        """It only reads."""
        return frozenset({Grant.READ_MEMORY})

    def inspect(self, guest: GuestOS, memory: PhysicalMemory) -> Iterable[Finding]:  # noqa: ARG002 - the contract gives it
        """This looks once, and where the two disagree once more: a finding is in both answers.

        What is born or dies between the two readings is in one listing only, but not again.
        """
        first = _disagreements(guest.processes(), guest.process_ids())
        if not first:
            return []
        second = _disagreements(guest.processes(), guest.process_ids())
        return [finding for key, finding in second.items() if key in first]


def _disagreements(listed: Listing[Process], known: Listing[Process]) -> dict[str, Finding]:
    """These are the processes that are in one of the two listings, by the key of the finding."""
    task_list, pid_idr = _View(_TASK_LIST, listed), _View(_PID_IDR, known)
    pairs = ((pid_idr, task_list), (task_list, pid_idr))
    findings = [
        _finding(process, shown=shown, hidden=hidden)
        for shown, hidden in pairs
        for process in _missing(shown.listing, hidden.listing)
    ]
    return {finding.key: finding for finding in findings}


@dataclass(frozen=True, slots=True)
class _View:
    """A listing and the structure it was read from."""

    structure: str
    listing: Listing[Process]


def _missing(shown: Listing[Process], hidden: Listing[Process]) -> list[Process]:
    """These are the processes of one listing that the other, if it has no gap, does not have.

    An exiting process is taken out of one structure after the other. On a guest that runs that is
    over before it is believed; one that stands still may stand just there.
    """
    if hidden.gaps:
        return []
    seen = {_identity(process) for process in hidden}
    runs = shown.provenance.taken is Taken.LIVE
    return [
        process
        for process in shown
        if _identity(process) not in seen and (runs or process.state != _EXITING)
    ]


def _identity(process: Process) -> str:
    """This names one process for as long as the guest runs; its address is used again after it."""
    return f"{process.address:#x}@{process.start_time_s!r}"


def _finding(process: Process, *, shown: _View, hidden: _View) -> Finding:
    facts = msgspec.to_builtins(process)
    del facts["address"]
    return Finding(
        claim=f"process {process.pid} ({process.name}) is in {shown.structure} "
        f"but not in {hidden.structure}",
        severity=Severity.HIGH,
        technique=_TECHNIQUE,
        key=f"not in {hidden.structure}: {_identity(process)}",
        evidence=(
            Observation(view=shown.structure, present=True, address=process.address, facts=facts),
            Observation(
                view=hidden.structure, present=False, facts={"processes": len(hidden.listing)}
            ),
        ),
        settle_s=_HALF_DONE_S if hidden.structure == _PID_IDR else 0.0,
    )
