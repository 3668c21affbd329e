"""Processes and threads that some of the kernel's structures show and others do not.

Nothing keeps the kernel's structures in step but its own code: the list of all tasks, which schedulers
and signals to everybody walk, the tables of pids, which /proc, and so ``ps``, reads, the tree of
children, the lists of threads, the run queues, and the memory that tasks are made in. A process cut out
of some of them goes on running, and hides from whoever asks those.

A listing may have gaps. Those of a guest that runs are moments of change, gone with the next look or
the one after it. One that stays is no such moment: what is missing behind it is missing, and what it
leads to, where nobody is missing, may be somebody who is in none of them.

References: kernel/fork.c copy_process(), kernel/exit.c __unhash_process(), kernel/pid.c alloc_pid();
MITRE ATT&CK T1014 Rootkit, T1564.013 Bind Mounts.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from qvmi.codepacks.codepack import Finding, Observation, Severity
from qvmi.codepacks.detectors.process_evidence import MAX_NAME, identity, seen, short
from qvmi.codepacks.detectors.seen_twice import seen_twice
from qvmi.memory.physical import PhysicalMemory
from qvmi.policy import Grant
from qvmi.semantics.guest_os import (
    Gap,
    GuestOS,
    Mount,
    Process,
    TaskSighting,
    TaskView,
    Thread,
)
from qvmi.view import Taken

__all__ = ["HiddenProcesses"]

Task = Process | Thread | TaskSighting

_TECHNIQUE: Final = "T1014"
_BIND_MOUNTS: Final = "T1564.013"
_EXITING: Final = "X"
_PROCESS, _THREAD = "process", "thread"
_MOUNT_FACTS: Final = ("namespace", "path", "root", "source", "filesystem", "device")
_PROC_FOLDER: Final = re.compile(r"/proc/([0-9]{1,10})(/.*)?")

_WHOLE_OF_PROCESSES: Final = (TaskView.LIST, TaskView.PIDS, TaskView.CHILDREN)
"""What every process is in."""
_WHOLE_OF_THREADS: Final = (TaskView.THREADS, TaskView.PIDS)
"""What every thread is in."""

_HALF_DONE_S: Final = 5.0
"""Longest time for which a process being born or dying is believed to be in some structures alone.

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
    """This compares what the kernel's structures show.

    It sees a process that is in any of them, but not in one that has all processes, and likewise a thread.
    One that is missing in the task list and has a pid is believed after two looks, everything else after
    some seconds, see `_HALF_DONE_S`, and so is what is behind a gap, see `_PASSING_GAP_S`. A gap that
    stays is a finding of its own, and so is a mount that covers a process's folder in /proc.

    Args:
        interval_s: from one look to the next. What is born or dies while a look goes on is in some
            listings only; the next look, at least this much later, finds it in all or in none.
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
        """This looks once, and where the views disagree once more: a finding is in both answers.

        What is born or dies between two readings is in some listings only, but not again; a gap
        that a change made is not at the same place again.
        """
        yield from seen_twice(_disagreements, guest)
        yield from _covered(guest.mounts())


def _disagreements(guest: GuestOS) -> list[Finding]:
    """These are the tasks that are missing somewhere, and the gaps."""
    showed = _Seen.of(guest)
    sought = (
        *((_PROCESS, whole) for whole in _WHOLE_OF_PROCESSES),
        *((_THREAD, whole) for whole in _WHOLE_OF_THREADS),
    )
    findings = [
        finding
        for kind, whole in sought
        if whole in showed.told
        for finding in _missing_in(whole, kind, showed)
    ]
    findings += [
        _gap(gap, view, len(showed.views[view]))
        for view, its in showed.gaps.items()
        for gap in islice(its, _MAX_GAPS_TOLD)
    ]
    return findings


@dataclass(frozen=True, slots=True)
class _Seen:
    """This is what the structures showed.

    Args:
        views: who is in which, by their identities.
        gaps: what could not be walked of each.
        told: those that the guest tells of at all.
        runs: whether the guest runs meanwhile.
    """

    views: dict[str, dict[str, Task]]
    gaps: dict[str, list[Gap]]
    told: frozenset[str]
    runs: bool

    @classmethod
    def of(cls, guest: GuestOS) -> "_Seen":
        """This asks for all of them."""
        listed, known, others = guest.processes(), guest.process_ids(), guest.task_sightings()
        views: dict[str, dict[str, Task]] = {view: {} for view in TaskView}
        for view, rows in ((TaskView.LIST, listed), (TaskView.PIDS, known)):
            views[view].update((identity(row), row) for row in rows)
        for row in others:
            if row.view is not TaskView.PIDS or _kind(row) == _THREAD:  # processes were asked for
                views[row.view].setdefault(identity(row), row)
        gaps: dict[str, list[Gap]] = {
            TaskView.LIST: list(listed.gaps),
            TaskView.PIDS: list(known.gaps),
        }
        for gap in others.gaps:
            gaps.setdefault(_view_of(gap), []).append(gap)
        told = frozenset(TaskView) if len(others) else frozenset({TaskView.LIST, TaskView.PIDS})
        return cls(views, gaps, told, listed.provenance.taken is Taken.LIVE)


def _view_of(gap: Gap) -> str:
    """This is the structure that a gap is in, of which it may name a member."""
    members = {"task_struct.thread_node": TaskView.THREADS, "task_struct.signal": TaskView.THREADS}
    return members.get(gap.structure) or next(
        (view for view in TaskView if view == gap.structure), TaskView.CHILDREN
    )


def _missing_in(whole: str, kind: str, showed: _Seen) -> Iterator[Finding]:
    """These are those whom a structure should have and has not, as every other one shows them.

    An exiting process is taken out of one structure after the other. On a guest that runs that is
    over before it is believed; one that stands still may stand just there.
    """
    hidden = showed.views[whole]
    missing: dict[str, dict[str, Task]] = {}
    for view, tasks in showed.views.items():
        for which, task in tasks.items():
            passes = task.state == _EXITING and not showed.runs
            if which not in hidden and _kind(task) == kind and not passes:
                missing.setdefault(which, {})[view] = task
    gaps = len(showed.gaps.get(whole, ()))
    for which, shown in missing.items():
        yield _missing(which, shown, whole, facts={"tasks": len(hidden), "gaps": gaps})


def _kind(task: Task) -> str:
    return _PROCESS if isinstance(task, Process) or task.pid == task.tgid else _THREAD


def _missing(which: str, shown: dict[str, Task], whole: str, *, facts: dict[str, int]) -> Finding:
    """This says that a task is not in a structure that should have it."""
    first = TaskView.PIDS if TaskView.PIDS in shown else next(iter(shown))
    task, gaps = shown[first], facts["gaps"]
    prompt = whole == TaskView.LIST and first == TaskView.PIDS
    present = [
        Observation(view=view, present=True, address=its.address, facts=_facts(its))
        for view, its in sorted(shown.items(), key=lambda one: one[0] != first)
    ]
    return Finding(
        claim=f"{_kind(task)} {task.pid} ({task.name[:MAX_NAME]}) is in {first} "
        f"but not in {whole}" + (", which cannot be walked whole" if gaps else ""),
        severity=Severity.HIGH,
        technique=_TECHNIQUE,
        # The same with a gap and without, so that nobody is safe who lets one come and go.
        key=f"not in {whole}: {which}",
        evidence=(*present, Observation(view=whole, present=False, facts=dict(facts))),
        settle_s=max(0.0 if prompt else _HALF_DONE_S, _PASSING_GAP_S if gaps else 0.0),
    )


def _facts(task: Task) -> dict[str, str | int | float | bool | None]:
    names = ("pid", "tgid", "ppid", "uid", "gid", "state", "name", "kernel_thread", "start_time_s")
    return {name: getattr(task, name) for name in names if hasattr(task, name)}


def _gap(gap: Gap, view: str, count: int) -> Finding:
    """This says that a structure cannot be walked past a place."""
    place = "" if gap.address is None else f" past {gap.address:#x}"
    return Finding(
        claim=f"{view} cannot be walked{place}: somebody may hide behind it",
        severity=Severity.MEDIUM,
        technique=_TECHNIQUE,
        key=f"gap in {view}{place}",
        evidence=(
            Observation(
                view=view,
                present=True,
                address=gap.address,
                facts={"reason": gap.reason, "tasks": count},
            ),
        ),
        settle_s=_PASSING_GAP_S,
    )


def _covered(mounts: Iterable[Mount]) -> Iterator[Finding]:
    """These are the mounts that put something else in the place of a process's folder in /proc."""
    for mount in mounts:
        covers = _PROC_FOLDER.fullmatch(mount.path)
        if covers is None:
            continue
        yield Finding(
            claim=f"{short(mount.filesystem)} is mounted on /proc/{covers[1]}, and hides that process"
            " from ps",
            severity=Severity.HIGH,
            technique=_BIND_MOUNTS,
            key=f"mounted on /proc: {mount.address:#x} {mount.id} {covers[1][:20]}",
            evidence=(seen("mnt_namespace", mount, _MOUNT_FACTS),),
        )
