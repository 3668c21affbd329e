"""Programs that get somebody else's code: by preloaded libraries, by tracers, by writes into their memory.

References: ld.so(8) (``LD_PRELOAD``, ``LD_AUDIT``, ``/etc/ld.so.preload``), ptrace(2), proc(5)
(``/proc/PID/mem``); MITRE ATT&CK T1574.006 Dynamic Linker Hijacking, T1055.008 Ptrace System Calls,
T1055.009 Proc Memory.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from qvmi.codepacks.codepack import Finding, Severity, Unseen
from qvmi.codepacks.detectors.file_watch import FileWatch
from qvmi.codepacks.detectors.process_evidence import identity, seen, short, told
from qvmi.memory.physical import PhysicalMemory
from qvmi.policy import Grant
from qvmi.semantics.guest_os import GuestOS, Process, Program
from qvmi.view import Provenance

__all__ = ["Injection"]

_VARIABLES: Final = ("LD_PRELOAD", "LD_AUDIT")
_PRELOAD_FILE: Final = "/etc/ld.so.preload"
_PROC_MEMORY: Final = re.compile(r"/proc/([0-9]{1,10})(/task/[0-9]{1,10})?/mem")
"""Whoever mounts something over its own /proc may have longer numbers there, which are nobody's pids."""
_UNUSUAL_PLACES: Final = ("/tmp/", "/var/tmp/", "/dev/shm/", "/run/", "/home/", "/proc/")  # noqa: S108 - the guest's
_MAX_SHOWN: Final = 16
"""Processes that are shown of those that have the same; the rest is counted."""
_SETTLE_S: Final = 3.0
"""Longest time for which a program is believed to be just starting another one, as debuggers do."""

DEBUGGERS: Final = (
    "gdb",
    "gdbserver",
    "lldb",
    "lldb-server",
    "strace",
    "ltrace",
    "rr",
    "dlv",
    "perf",
)


@dataclass(frozen=True, slots=True)
class Injection:
    """This looks at environments, at ``ld.so.preload``, at tracers and at descriptors of others' memory.

    Args:
        interval_s: from one look to the next.
        libraries: those that may be preloaded, by their paths, or by their names where these are no paths.
        debuggers: names of executables that may trace what they have started.
        files: the guest's files, searched seldom.
    """

    interval_s: float = 1.0
    libraries: Sequence[str] = ()
    debuggers: Sequence[str] = DEBUGGERS
    files: FileWatch = field(default_factory=FileWatch)

    @property
    def name(self) -> str:
        """This is its name on the bus."""
        return "injection"

    @property
    def grants(self) -> frozenset[Grant]:
        """It only reads."""
        return frozenset({Grant.READ_MEMORY})

    def inspect(self, guest: GuestOS, memory: PhysicalMemory) -> Iterator[Finding | Unseen]:  # noqa: ARG002 - the contract gives it
        """This looks once."""
        listing = guest.processes()
        processes = {process.pid: process for process in listing}
        yield from self._preloaded(guest, processes)
        yield from self._preload_files(guest, listing.provenance)
        yield from self.files.unseen()
        programs = {program.pid: program for program in guest.programs()}
        yield from self._traced(processes, programs)
        yield from _memory_opened(guest, processes)

    def _preloaded(self, guest: GuestOS, processes: dict[int, Process]) -> Iterator[Finding]:
        """These are libraries that processes were told to load, with all that were."""
        who: dict[tuple[str, str], list[Process]] = defaultdict(list)
        for variable in guest.environment():
            process = processes.get(variable.pid)
            if variable.name in _VARIABLES and process is not None:
                foreign = self._foreign(variable.value or "")
                if foreign:
                    who[variable.name, " ".join(foreign)].append(process)
        for (name, value), told_so in who.items():
            yield _preload(name, value, told_so)

    def _foreign(self, value: str) -> list[str]:
        """These are the libraries of a list that may not be preloaded."""
        allowed = self.libraries
        return [
            one
            for one in re.split(r"[\s:]+", value)
            if one and one not in allowed and one.rpartition("/")[2] not in allowed
        ]

    def _preload_files(self, guest: GuestOS, label: Provenance) -> Iterator[Finding]:
        """These are the files that have every program of a system load something."""
        for file, data in self.files.contents(guest, (_PRELOAD_FILE,), label):
            text = re.sub(r"#[^\n]*", "", data.decode("utf-8", "backslashreplace"))
            foreign = self._foreign(text)
            if file.size and (foreign or not data) and not file.deleted:
                yield Finding(
                    claim=f"{short(file.path)} has every program load {short(' '.join(foreign)) or '?'}",
                    severity=Severity.HIGH,
                    technique="T1574.006",
                    key=f"ld.so.preload: {file.device} {file.inode}",
                    evidence=(
                        seen(
                            "page cache",
                            file,
                            ("path", "device", "inode", "size"),
                            text=short(text),
                        ),
                    ),
                )

    def _traced(
        self, processes: dict[int, Process], programs: dict[int, Program]
    ) -> Iterator[Finding]:
        """These are those that another process controls."""
        for program in programs.values():
            process = processes.get(program.pid)
            if program.tracer is None or process is None or process.address != program.address:
                continue
            tracer = programs.get(program.tracer)
            its = processes.get(program.tracer)
            by = told(its) if its else f"process {program.tracer}"
            started = program.ppid == program.tracer
            known = tracer is not None and tracer.path.rpartition("/")[2] in self.debuggers
            if started and known:
                continue
            yield Finding(
                claim=f"{told(process)} is traced by {by}"
                + ("" if started else ", which did not start it"),
                severity=Severity.LOW if started or known else Severity.HIGH,
                technique="T1055.008",
                key=f"traced by {program.tracer}: {identity(process)}",
                evidence=(
                    seen("task_struct.ptrace", program, ("pid", "name", "path", "ppid", "tracer")),
                    *(
                        (seen("mm_struct.exe_file", tracer, ("pid", "name", "path")),)
                        if tracer
                        else ()
                    ),
                ),
                settle_s=_SETTLE_S,
            )


def _preload(name: str, value: str, who: Sequence[Process]) -> Finding:
    """This tells of a variable by one finding, whoever has it: children get it from their parents."""
    first = min(who, key=lambda process: process.start_time_s)
    unusual = any(one.startswith(_UNUSUAL_PLACES) or "/." in one for one in value.split())
    digest = hashlib.sha256(f"{name}={value}".encode("utf-8", "backslashreplace")).hexdigest()
    return Finding(
        claim=f"{told(first)}, and {len(who) - 1} more, were started with {name}={short(value)}",
        severity=Severity.HIGH if unusual or name != _VARIABLES[0] else Severity.MEDIUM,
        technique="T1574.006",
        key=f"{name} {digest[:32]}",
        evidence=tuple(
            seen("mm_struct.env_start", one, ("pid", "name", "uid"), **{name: short(value)})
            for one in who[:_MAX_SHOWN]
        ),
    )


def _memory_opened(guest: GuestOS, processes: dict[int, Process]) -> Iterator[Finding]:
    """These are descriptors by which a process can write another's memory."""
    for file in guest.open_files():
        found = _PROC_MEMORY.fullmatch(file.path)
        process = processes.get(file.pid)
        if found is None or process is None or "w" not in file.access:
            continue
        if int(found[1]) == file.pid:
            continue
        yield Finding(
            claim=f"{told(process)} can write the memory of process {found[1]}",
            severity=Severity.HIGH,
            technique="T1055.009",
            key=f"memory of {found[1]}: {identity(process)}",
            evidence=(seen("files_struct.fdt", file, ("pid", "fd", "path", "access")),),
            settle_s=_SETTLE_S,
        )
