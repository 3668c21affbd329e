"""Processes that one of the kernel's structures shows and the other does not.

The kernel finds a process in two ways that nothing keeps in step but its own code: the list of all
tasks (``init_task.tasks``), which schedulers and signals to everybody walk, and the pid namespace's
radix tree (``init_pid_ns.idr``), which /proc, and so ``ps``, reads. A process cut out of one of
them goes on running, and hides from whoever asks that one.

A listing may have gaps. Those of a guest that runs are moments of change, gone with the next look or
the one after it. One that stays is no such moment: what is missing behind it is missing, and what it
leads to, where nobody is missing, may be somebody who is in neither of the two.

References: kernel/fork.c copy_process(), kernel/exit.c __unhash_process(), kernel/pid.c alloc_pid();
MITRE ATT&CK T1014 Rootkit.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Final

import msgspec

from qvmi.codepacks.codepack import Finding, Observation, Severity
from qvmi.memory.physical import PhysicalMemory
from qvmi.policy import Grant
from qvmi.semantics.guest_os import Gap, GuestOS, Listing, Process
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

_PASSING_GAP_S: Final = 5.0
"""Longest time for which a gap is believed to be a moment of change, and to explain who is missing.

In a storm of forks one look in fifty has a gap, and hardly two in a row; one without ends the matter.
A vCPU that the host takes away in the midst of a change makes it last, as above.
"""

_MAX_GAPS_TOLD: Final = 16
"""Gaps of one structure that become findings; one with more of them is told by those."""


@dataclass(frozen=True, slots=True)
class HiddenProcesses:
    """This compares the task list with the pid namespace.

    It sees a process that is in one of the two: one that is missing in the task list after two
    looks, one that is missing in the pid namespace after some seconds, see `_HALF_DONE_S`, and one
    behind a gap after some seconds, see `_PASSING_GAP_S`. A gap that stays is a finding of its own.
    It does not see a process that is in neither where both are whole, nor threads.

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

        What is born or dies between the two readings is in one listing only, but not again; a gap
        that a change made is not at the same place again.
        """
        first = _disagreements(guest.processes(), guest.process_ids())
        if not first:
            return []
        second = _disagreements(guest.processes(), guest.process_ids())
        return [finding for key, finding in second.items() if key in first]


def _disagreements(listed: Listing[Process], known: Listing[Process]) -> dict[str, Finding]:
    """These are the processes that are in one of the two listings, and the gaps, by their keys."""
    task_list, pid_idr = _View(_TASK_LIST, listed), _View(_PID_IDR, known)
    pairs = ((pid_idr, task_list), (task_list, pid_idr))
    missing = [
        _missing(process, shown=shown, hidden=hidden)
        for shown, hidden in pairs
        for process in _not_in(hidden.listing, shown.listing)
    ]
    gaps = [
        _gap(gap, view)
        for view in (task_list, pid_idr)
        for gap in islice(view.listing.gaps, _MAX_GAPS_TOLD)
    ]
    return {finding.key: finding for finding in (*missing, *gaps)}


@dataclass(frozen=True, slots=True)
class _View:
    """A listing and the structure it was read from."""

    structure: str
    listing: Listing[Process]


def _not_in(hidden: Listing[Process], shown: Listing[Process]) -> list[Process]:
    """These are the processes of the second listing that the first does not have.

    An exiting process is taken out of one structure after the other. On a guest that runs that is
    over before it is believed; one that stands still may stand just there.
    """
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


def _missing(process: Process, *, shown: _View, hidden: _View) -> Finding:
    """This says that a process is in one view alone."""
    facts = msgspec.to_builtins(process)
    del facts["address"]
    gaps = len(hidden.listing.gaps)
    half_done_s = _HALF_DONE_S if hidden.structure == _PID_IDR else 0.0
    return Finding(
        claim=f"process {process.pid} ({process.name}) is in {shown.structure} "
        f"but not in {hidden.structure}" + (", which cannot be walked whole" if gaps else ""),
        severity=Severity.HIGH,
        technique=_TECHNIQUE,
        # The same with a gap and without, so that nobody is safe who lets one come and go.
        key=f"not in {hidden.structure}: {_identity(process)}",
        evidence=(
            Observation(view=shown.structure, present=True, address=process.address, facts=facts),
            Observation(
                view=hidden.structure,
                present=False,
                facts={"processes": len(hidden.listing), "gaps": gaps},
            ),
        ),
        settle_s=max(half_done_s, _PASSING_GAP_S if gaps else 0.0),
    )


def _gap(gap: Gap, view: _View) -> Finding:
    """This says that a structure cannot be walked past a place."""
    place = "" if gap.address is None else f" past {gap.address:#x}"
    return Finding(
        claim=f"{view.structure} cannot be walked{place}: somebody may hide behind it",
        severity=Severity.MEDIUM,
        technique=_TECHNIQUE,
        key=f"gap in {view.structure}{place}",
        evidence=(
            Observation(
                view=view.structure,
                present=True,
                address=gap.address,
                facts={"reason": gap.reason, "processes": len(view.listing)},
            ),
        ),
        settle_s=_PASSING_GAP_S,
    )
