"""Processes that may do what nobody can have let them do.

The kernel gives each process credentials of its own, and changes them by giving it others; without
CAP_SETUID a process gets no user that it was not, and more rights by exec of a program that gives them
alone. Who patches credentials, or puts another's in their place, does not keep to that.

References: kernel/cred.c (``copy_creds``: only threads share theirs, ``commit_creds``); MITRE ATT&CK
T1068 Exploitation for Privilege Escalation, T1548.001 Setuid and Setgid, T1562.001 Disable or Modify Tools.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from qvmi.codepacks.codepack import Finding, Observation, Severity
from qvmi.codepacks.detectors.privileges import (
    Known,
    gains,
    is_root,
    is_set_uid,
    unexplained_root,
)
from qvmi.codepacks.detectors.process_evidence import by_address, identity, seen, short, told
from qvmi.codepacks.detectors.system_folders import SYSTEM_FOLDERS
from qvmi.memory.physical import PhysicalMemory
from qvmi.policy import Grant
from qvmi.semantics.guest_os import Credentials, GuestOS, Listing, Process, Program
from qvmi.view import Provenance

__all__ = ["CredentialWatch"]

_IDS: Final = ("pid", "name", "uid", "euid", "suid", "fsuid", "gid", "egid", "cred", "real_cred")
_PROGRAM: Final = ("path", "mode", "owner", "execs")
_SETTLE_S: Final = 5.0
"""Longest time for which the kernel is believed to act by another's credentials, as binfmt_misc does."""
_ACTING_S: Final = 30.0
"""Longest time for which the kernel is believed to act for a process by others' credentials, as overlayfs
does for each access: each look may see that where a program does little else."""
_MAX_SHARERS: Final = 8
_MAX_REMEMBERED: Final = 1 << 16
"""Processes that are remembered though a gap may only hide them: a guest that has one for ever, and forks,
would fill our memory. With more, those that are not listed are forgotten."""

SHELLS: Final = (
    *(
        "sh",
        "ash",
        "bash",
        "dash",
        "ksh",
        "zsh",
        "fish",
        "busybox",
        "python3",
        "perl",
        "vim",
        "env",
    ),
)
"""Programs that run whatever they are told: set-uid, they are a way to everything."""


@dataclass(slots=True)
class CredentialWatch:
    """This looks at credentials, and at what they were in the looks before.

    Args:
        interval_s: from one look to the next.
        steady_s: how long credentials must have stayed the same before what follows is compared with
            them: longer than exec takes to give others.
        set_uid_folders: where set-uid programs may lie; shells may not even there.
    """

    interval_s: float = 1.0
    steady_s: float = 0.5
    set_uid_folders: Sequence[str] = SYSTEM_FOLDERS
    _known: dict[str, Known] = field(default_factory=dict, init=False)
    _gained: dict[str, tuple[Known, tuple[str, ...]]] = field(default_factory=dict, init=False)
    _epoch: int = field(default=0, init=False)

    @property
    def name(self) -> str:
        """This is its name on the bus."""
        return "credentials"

    @property
    def grants(self) -> frozenset[Grant]:
        """It only reads."""
        return frozenset({Grant.READ_MEMORY})

    def inspect(self, guest: GuestOS, memory: PhysicalMemory) -> Iterable[Finding]:  # noqa: ARG002 - the contract gives it
        """This looks once; who calls exec meanwhile is looked at in the next look."""
        ran = {program.address: program for program in guest.programs()}
        listing, every = guest.credentials(), guest.processes()
        runs = {program.address: program for program in guest.programs()}
        processes = by_address(every)
        self._forget(every)
        by_pid = {its.pid: its for its in listing}
        for its in listing:
            process, program = processes.get(its.address), runs.get(its.address)
            if process is None or process.pid != its.pid:
                continue
            yield from _shared(process, its)
            if program is None or process.kernel_thread:
                continue
            yield from _acting(process, its)
            before = ran.get(its.address)
            if before is None or before.exec_id != program.exec_id:
                continue
            yield from self._jumped(process, its, program, listing.provenance)
            yield from self._root(process, its, program, by_pid.get(program.ppid))

    def _forget(self, processes: Listing[Process]) -> None:
        """This forgets those that are there no more; behind a gap they may yet be, up to a bound."""
        epoch = processes.provenance.epoch
        if epoch != self._epoch:
            self._known.clear()
            self._gained.clear()
            self._epoch = epoch
        if not processes.gaps or len(self._known) > _MAX_REMEMBERED:
            there = {identity(process) for process in processes}
            for memory in (self._known, self._gained):
                for one in memory.keys() - there:
                    del memory[one]

    def _jumped(
        self, process: Process, its: Credentials, program: Program, label: Provenance
    ) -> Iterator[Finding]:
        """This tells of what a process has got since it was seen first, and cannot have got by itself."""
        one, now = identity(process), Known(its, program.exec_id, label.at)
        known = self._known.setdefault(one, now)
        more = gains(known, its, program.exec_id) if self._is_steady(known, label) else ()
        if more:
            self._gained[one] = (known, more)
        elif one not in self._gained and not _is_same(known, now):
            self._known[one] = now
        if one in self._gained:
            yield _gain(process, its, *self._gained[one])

    def _is_steady(self, known: Known, label: Provenance) -> bool:
        return label.at - known.at >= self.steady_s

    def _root(
        self, process: Process, its: Credentials, program: Program, parent: Credentials | None
    ) -> Iterator[Finding]:
        if parent is not None and unexplained_root(its, program, parent):
            yield _by_nobody(process, its, program, parent)
        elsewhere = not program.path.startswith(tuple(self.set_uid_folders))
        shell = program.path.rpartition("/")[2] in SHELLS
        if is_root(its) and is_set_uid(program) and (elsewhere or shell) and its.uid:
            yield _set_uid(process, its, program)


def _is_same(known: Known, now: Known) -> bool:
    """This tells whether nothing has changed that rights are made of."""
    was, its = known.credentials, now.credentials
    return known.exec_id == now.exec_id and (was.real_cred, _rights(was)) == (
        its.real_cred,
        _rights(its),
    )


def _rights(its: Credentials) -> tuple[object, ...]:
    return (
        *(its.uid, its.euid, its.suid, its.fsuid, its.gid, its.egid, its.sgid, its.fsgid),
        *(its.permitted.number, its.effective.number, its.bounding.number, its.user_namespace),
        its.groups,
        *(its.no_new_privs, its.seccomp),
    )


def _shared(process: Process, its: Credentials) -> Iterator[Finding]:
    """This tells of credentials that are another process's, too."""
    if not its.shared_with:
        return
    others = ", ".join(map(str, its.shared_with[:_MAX_SHARERS]))
    yield Finding(
        claim=f"{told(process)} has the credentials of process {others}",
        severity=Severity.CRITICAL,
        technique="T1068",
        key=f"shared credentials {its.real_cred:#x}: {identity(process)}",
        evidence=(seen("task_struct.real_cred", its, _IDS, shared_with=others),),
        settle_s=_SETTLE_S,
    )


def _acting(process: Process, its: Credentials) -> Iterator[Finding]:
    """This tells of a process that acts by other credentials than those that everybody is shown."""
    if its.cred == its.real_cred:
        return
    yield Finding(
        claim=f"{told(process)} acts by other credentials than its own",
        severity=Severity.HIGH,
        technique="T1068",
        key=f"acts by {its.cred:#x}: {identity(process)}",
        evidence=(
            seen("task_struct.real_cred", its, _IDS),
            Observation(view="task_struct.cred", present=True, address=its.cred),
        ),
        settle_s=_ACTING_S,
    )


def _gain(process: Process, its: Credentials, known: Known, more: tuple[str, ...]) -> Finding:
    was = known.credentials
    same = was.real_cred == its.real_cred
    how = "were overwritten" if same else "were replaced"
    impaired = all("no_new_privs" in one or "system calls" in one for one in more)
    return Finding(
        claim=f"{told(process)} has got {'; '.join(more)}, without exec: its credentials {how}",
        severity=Severity.CRITICAL,
        technique="T1562.001" if impaired else "T1068",
        key=f"gained: {identity(process)}",
        evidence=(
            seen("cred before", was, _IDS, **_more(was)),
            seen("cred now", its, _IDS, **_more(its)),
        ),
    )


def _more(its: Credentials) -> dict[str, str | int | bool]:
    """These are the facts of credentials that are no plain fields."""
    return {
        "struct_cred": its.real_cred,
        "permitted": f"{its.permitted.number:#x}",
        "effective": f"{its.effective.number:#x}",
        "bounding": f"{its.bounding.number:#x}",
        "no_new_privs": its.no_new_privs,
        "seccomp": its.seccomp,
        "user_namespace": its.user_namespace,
    }


def _by_nobody(
    process: Process, its: Credentials, program: Program, parent: Credentials
) -> Finding:
    return Finding(
        claim=f"{told(process)} is root, though process {parent.pid} that made it is not, nor does "
        f"{short(program.path)} make anybody root",
        severity=Severity.HIGH,
        technique="T1068",
        key=f"root by nobody: {identity(process)}",
        evidence=(
            seen("task_struct.real_cred", its, _IDS),
            seen("mm_struct.exe_file", program, _PROGRAM),
            seen("cred of the parent", parent, _IDS),
        ),
    )


def _set_uid(process: Process, its: Credentials, program: Program) -> Finding:
    return Finding(
        claim=f"{told(process)} is root by {short(program.path)}, which no system has set-uid there",
        severity=Severity.HIGH,
        technique="T1548.001",
        key=f"set-uid: {identity(process)}",
        evidence=(
            seen("mm_struct.exe_file", program, _PROGRAM),
            seen("task_struct.real_cred", its, _IDS),
        ),
    )
