"""Processes that look like something else: like a kernel thread, or like a daemon of the system's.

A kernel thread has no memory of its own, no arguments, and ``kthreadd`` for a parent. ``ps`` writes a process
without arguments in brackets, as it writes kernel threads; what a process is called is its own choice, which
program it runs is not.

References: fs/proc/array.c, kernel/kthread.c, kernel/umh.c; MITRE ATT&CK T1036.005 Match Legitimate
Resource Name or Location, T1036.011 Overwrite Process Arguments, T1014 Rootkit.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from qvmi.codepacks.codepack import Finding, Observation, Severity
from qvmi.codepacks.detectors.process_evidence import by_address, identity, seen, short, told
from qvmi.codepacks.detectors.system_folders import SYSTEM_FOLDERS
from qvmi.memory.physical import PhysicalMemory
from qvmi.policy import Grant
from qvmi.semantics.guest_os import CommandLine, GuestOS, Process, Program

__all__ = ["Impostors"]

_INIT, _KTHREADD = 1, 2
_NAMES: Final = "T1036.005"
_ARGUMENTS: Final = "T1036.011"
_ROOTKIT: Final = "T1014"
_SETTLE_S: Final = 5.0
"""Longest time for which a kernel thread may use somebody's memory, and the kernel may have a program of its
own run, as modprobe: both are done by the millisecond."""

_KERNEL_NAME: Final = re.compile(
    r"(kworker/|ksoftirqd/|migration/|cpuhp/|rcu_[a-z]|rcu[bcop]/|kswapd[0-9]|kcompactd[0-9]|khugepaged|ksmd|"
    r"kthreadd$|kdevtmpfs$|kauditd$|khungtaskd$|oom_reaper$|writeback$|irq/[0-9]|jbd2/|scsi_eh_|"
    r"idle_inject/|netns$|inet_frag_wq|kintegrityd|kblockd|watchdogd$|xfs-|dm_)"
)
_BRACKETS: Final = re.compile(r"\[.*\]\s*")

DAEMONS: Final = (
    *(
        "systemd",
        "init",
        "sshd",
        "cron",
        "crond",
        "atd",
        "dbus-daemon",
        "rsyslogd",
        "agetty",
        "login",
    ),
    *("systemd-journal", "systemd-journald", "systemd-logind", "systemd-udevd", "systemd-network"),
    *("systemd-resolve", "polkitd", "auditd", "chronyd", "ntpd", "udevd", "containerd", "dockerd"),
)
HELPERS: Final = (
    *("modprobe", "kmod", "systemd-coredump", "apport", "systemd-cgroups-agent", "request-key"),
)
"""Programs that the kernel itself starts."""


@dataclass(frozen=True, slots=True)
class Impostors:
    """This compares what a process says it is with what it runs.

    Args:
        interval_s: from one look to the next.
        daemons: names that only programs in system folders may bear.
        folders: these folders.
        helpers: names of executables that the kernel may start.
    """

    interval_s: float = 1.0
    daemons: Sequence[str] = DAEMONS
    folders: Sequence[str] = SYSTEM_FOLDERS
    helpers: Sequence[str] = HELPERS

    @property
    def name(self) -> str:
        """This is its name on the bus."""
        return "impostors"

    @property
    def grants(self) -> frozenset[Grant]:
        """It only reads."""
        return frozenset({Grant.READ_MEMORY})

    def inspect(self, guest: GuestOS, memory: PhysicalMemory) -> Iterable[Finding]:  # noqa: ARG002 - the contract gives it
        """This looks once."""
        processes = by_address(guest.processes())
        kernel = {process.pid for process in processes.values() if process.kernel_thread}
        listing = guest.command_lines()
        lines = {line.address: line for line in listing}
        programs = guest.programs()
        first = programs.find(pid=_INIT)
        for program in programs:
            process = processes.get(program.address)
            if process is None or process.pid != program.pid:
                continue
            if process.kernel_thread:
                yield from _kernel_thread(process, program)
                continue
            yield from self._started_by_kernel(process, program, kernel)
            line = lines.get(program.address)
            if program.memory is not None and line is not None:
                yield from _named(process, program, line, has_gaps=bool(listing.gaps))
                if first is None or (first.device, first.inode) != (program.device, program.inode):
                    yield from self._daemon(process, program, line)

    def _started_by_kernel(
        self, process: Process, program: Program, kernel: set[int]
    ) -> Iterator[Finding]:
        if program.ppid in kernel and program.path.rpartition("/")[2] not in self.helpers:
            yield _finding(
                process,
                program,
                f"runs {short(program.path) or 'nothing'}, and the kernel started it",
                kind="started by the kernel",
                technique=_ROOTKIT,
                severity=Severity.MEDIUM,
                settle_s=_SETTLE_S,
            )

    def _daemon(self, process: Process, program: Program, line: CommandLine) -> Iterator[Finding]:
        """This tells of who bears a daemon's name, and is a program from elsewhere."""
        first = line.arguments[0].rpartition("/")[2] if line.arguments else ""
        name = next((one for one in (process.name, first) if one in self.daemons), None)
        elsewhere = program.path and not program.path.startswith(tuple(self.folders))
        if name is not None and elsewhere:
            words = f"is called {name}, and runs {short(program.path)}"
            yield _finding(process, program, words, kind="daemon's name", line=line)


def _named(
    process: Process, program: Program, line: CommandLine, *, has_gaps: bool
) -> Iterator[Finding]:
    """This tells of who looks like a kernel thread, and has memory of its own."""
    first = line.arguments[0] if line.arguments else ""
    if _KERNEL_NAME.match(process.name) or _BRACKETS.fullmatch(process.name):
        yield _finding(process, program, "is called like a kernel thread", kind="kernel's name")
    elif _BRACKETS.fullmatch(first):
        words = f"calls itself {short(first)}, as ps writes kernel threads"
        yield _finding(process, program, words, kind="brackets", line=line)
    elif not any(line.arguments) and not has_gaps:
        yield _finding(
            process,
            program,
            "has no arguments, not even its name: ps writes it like a kernel thread",
            kind="no arguments",
            technique=_ARGUMENTS,
            severity=Severity.MEDIUM,
            settle_s=_SETTLE_S,
            line=line,
        )


def _kernel_thread(process: Process, program: Program) -> Iterator[Finding]:
    if program.memory is not None:
        words = "is a kernel thread, and has memory of a program's"
        yield _finding(
            process, program, words, kind="memory", technique=_ROOTKIT, settle_s=_SETTLE_S
        )
    if program.ppid not in {0, _KTHREADD}:
        words = f"is a kernel thread, and a child of process {program.ppid}"
        yield _finding(
            process, program, words, kind="parent", technique=_ROOTKIT, settle_s=_SETTLE_S
        )


def _finding(  # noqa: PLR0913 - what differs from sign to sign
    process: Process,
    program: Program,
    words: str,
    *,
    kind: str,
    technique: str = _NAMES,
    severity: Severity = Severity.HIGH,
    settle_s: float = 0.0,
    line: CommandLine | None = None,
) -> Finding:
    names = ("pid", "name", "kernel_thread", "memory", "path", "ppid", "execs")
    arguments = () if line is None else (_arguments(line),)
    return Finding(
        claim=f"{told(process)} {words}",
        severity=severity,
        technique=technique,
        key=f"{kind}: {identity(process)}",
        evidence=(seen("task_struct", program, names), *arguments),
        settle_s=settle_s,
    )


def _arguments(line: CommandLine) -> Observation:
    return Observation(
        view="mm_struct.arg_start",
        present=bool(line.arguments),
        address=line.address,
        facts={"arguments": short(" ".join(line.arguments))},
    )
