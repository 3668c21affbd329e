"""Code that runs from where a program's code does not come from: memory, or a file that is gone.

A program's code lies in files, which are mapped readable and executable, and the file that exec was called
with is among them. What was written into memory and made executable there, a program without a file, and a
process whose own file is not mapped any more are how code gets in beside that.

References: MITRE ATT&CK T1620 Reflective Code Loading, T1055 Process Injection, T1055.012 Process
Hollowing, T1070.004 File Deletion; memfd_create(2), mmap(2).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from qvmi.codepacks.codepack import Finding, Observation, Severity
from qvmi.codepacks.detectors.anonymous_memory import is_anonymous
from qvmi.codepacks.detectors.process_evidence import identity, seen, short, told
from qvmi.memory.physical import PhysicalMemory
from qvmi.policy import Grant
from qvmi.semantics.guest_os import GuestOS, MemoryMapping, Process, Program

__all__ = ["UnusualCode"]

_MEMORY_FILE: Final = "/memfd:"
_MAX_MAPPINGS: Final = 16
"""Mappings that are shown of one process; the rest is counted."""
_SETTLE_S: Final = 3.0
"""Longest time for which a program is believed to be just starting: the dynamic linker relocates code
within milliseconds, and a host with too much to do may take the vCPU away in the midst of it."""

_PROGRAM_FACTS: Final = ("pid", "name", "path", "deleted", "device", "inode")
_MAPPING_FACTS: Final = ("start", "end", "permissions", "name", "deleted", "device", "inode")

JITS: Final = (
    *("java", "node", "nodejs", "deno", "bun", "dotnet", "mono", "mono-sgen", "luajit", "pypy3"),
    *(
        "firefox",
        "firefox-esr",
        "chrome",
        "chromium",
        "gnome-shell",
        "gjs",
        "gjs-console",
        "polkitd",
    ),
    *("qemu-system-x86_64", "qemu-system-aarch64", "erl", "beam.smp", "julia", "wasmtime"),
)
"""Programs that make code while they run: what their executables are called."""


@dataclass(frozen=True, slots=True)
class UnusualCode:
    """This looks at executables and at executable mappings.

    Args:
        interval_s: from one look to the next.
        jits: names of executables whose anonymous code is as it should be.
    """

    interval_s: float = 1.0
    jits: Sequence[str] = JITS

    @property
    def name(self) -> str:
        """This is its name on the bus."""
        return "unusual-code"

    @property
    def grants(self) -> frozenset[Grant]:
        """It only reads."""
        return frozenset({Grant.READ_MEMORY})

    def inspect(self, guest: GuestOS, memory: PhysicalMemory) -> Iterable[Finding]:  # noqa: ARG002 - the contract gives it
        """This looks once at every process that has memory of its own."""
        processes = {process.pid: process for process in guest.processes()}
        programs = {program.pid: program for program in guest.programs()}
        mapped: dict[int, list[MemoryMapping]] = defaultdict(list)
        listing = guest.mappings()
        for mapping in listing:
            if "x" in mapping.permissions:
                mapped[mapping.pid].append(mapping)
        for pid, process in processes.items():
            program = programs.get(pid)
            if program is None or program.memory is None or program.address != process.address:
                continue  # it has ended, or has no code of its own
            yield from _of_executable(process, program)
            yield from self._of_mappings(process, program, mapped[pid])
            if not listing.gaps:  # what is missing behind a gap is not therefore gone
                yield from _hollow(process, program, mapped[pid])

    def _of_mappings(
        self, process: Process, program: Program, mappings: Sequence[MemoryMapping]
    ) -> Iterator[Finding]:
        makes_code = program.path.rpartition("/")[2] in self.jits
        anonymous = [one for one in mappings if is_anonymous(one) and not makes_code]
        if anonymous:
            yield _mapped(process, anonymous, "anonymous", "runs code that is in no file")
        writable = [one for one in mappings if one.inode and "w" in one.permissions]
        if writable:
            yield _mapped(
                process, writable, "writable", "may write the code that it runs from files"
            )
        gone = [
            one for one in mappings if one.deleted and (one.device, one.inode) != _file(program)
        ]
        if gone:
            yield _mapped(process, gone, "gone", "runs code of files that are deleted")


def _file(program: Program) -> tuple[str, int]:
    return program.device, program.inode


def _of_executable(process: Process, program: Program) -> Iterator[Finding]:
    """This tells of an executable that is no file, or whose file is gone."""
    if not program.deleted:
        return
    in_memory = program.path.startswith(_MEMORY_FILE)
    how = "was never in a folder" if in_memory else "was deleted or replaced"
    yield Finding(
        claim=f"{told(process)} runs {short(program.path)}, which {how}",
        severity=Severity.HIGH if in_memory else Severity.MEDIUM,
        technique="T1620" if in_memory else "T1070.004",
        key=f"executable {program.exec_id}: {identity(process)}",
        evidence=(seen("mm_struct.exe_file", program, _PROGRAM_FACTS),),
    )


def _mapped(process: Process, mappings: Sequence[MemoryMapping], kind: str, what: str) -> Finding:
    """This tells of executable mappings of one kind, by one finding for all of a process."""
    severity = Severity.LOW if kind == "gone" else Severity.MEDIUM
    if any("w" in one.permissions or _in_memory_file(one) for one in mappings):
        severity = Severity.HIGH
    return Finding(
        claim=f"{told(process)} {what}: {len(mappings)} mappings, the first at {mappings[0].start:#x}",
        severity=severity,
        technique="T1055",
        key=f"{kind} code: {identity(process)}",
        evidence=tuple(
            seen("mm_struct.mm_mt", one, _MAPPING_FACTS) for one in mappings[:_MAX_MAPPINGS]
        ),
        settle_s=_SETTLE_S,
    )


def _in_memory_file(mapping: MemoryMapping) -> bool:
    return mapping.deleted and mapping.name.startswith(_MEMORY_FILE)


def _hollow(
    process: Process, program: Program, mappings: Sequence[MemoryMapping]
) -> Iterator[Finding]:
    """This tells of a process that does not have its own executable mapped any more."""
    if not program.inode or any((one.device, one.inode) == _file(program) for one in mappings):
        return
    yield Finding(
        claim=f"{told(process)} runs other code than its executable {short(program.path)}",
        severity=Severity.HIGH,
        technique="T1055.012",
        key=f"hollow: {identity(process)}",
        evidence=(
            seen("mm_struct.exe_file", program, _PROGRAM_FACTS),
            Observation(
                view="mm_struct.mm_mt",
                present=False,
                facts={"executable_mappings": len(mappings)},
            ),
            *(seen("mm_struct.mm_mt", one, _MAPPING_FACTS) for one in mappings[:_MAX_MAPPINGS]),
        ),
        settle_s=_SETTLE_S,
    )
