"""The selected interface: what any guest operating system can be asked, and the rows it answers with."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, overload

import msgspec

from qvmi.addr import Va
from qvmi.errors import UsageError
from qvmi.semantics.code_baseline import CodeBaseline
from qvmi.semantics.rows.bpf import BpfProgram
from qvmi.semantics.rows.cached_files import CachedFile, FilePiece
from qvmi.semantics.rows.code import CodeChange, CodePointer
from qvmi.semantics.rows.containers import Cgroup, CgroupHierarchy, Namespaces
from qvmi.semantics.rows.credentials import CapabilitySet, Credentials
from qvmi.semantics.rows.files import Mount, OpenFile
from qvmi.semantics.rows.log import LogRecord
from qvmi.semantics.rows.mappings import MemoryMapping, MemoryRun
from qvmi.semantics.rows.modules import Module, ModuleSighting
from qvmi.semantics.rows.processes import CommandLine, Process, Thread, Variable
from qvmi.semantics.rows.programs import Program
from qvmi.semantics.rows.settings import KernelSetting
from qvmi.semantics.rows.sightings import TaskSighting, TaskView
from qvmi.semantics.rows.sockets import Socket
from qvmi.semantics.rows.stacks import StackFrame
from qvmi.view import Provenance

__all__ = [
    "BpfProgram",
    "CachedFile",
    "CapabilitySet",
    "Cgroup",
    "CgroupHierarchy",
    "CodeBaseline",
    "CodeChange",
    "CodePointer",
    "CommandLine",
    "Credentials",
    "Evidence",
    "FilePiece",
    "Gap",
    "GuestFacts",
    "GuestOS",
    "KernelSetting",
    "Listing",
    "LogRecord",
    "MemoryMapping",
    "MemoryRun",
    "Module",
    "ModuleSighting",
    "Mount",
    "Namespaces",
    "OpenFile",
    "Process",
    "Program",
    "Socket",
    "StackFrame",
    "TaskSighting",
    "TaskView",
    "Thread",
    "Variable",
]

Row_co = TypeVar("Row_co", covariant=True)


class Gap(msgspec.Struct, frozen=True, gc=False):
    """This is a part of the guest that could not be looked at.

    Args:
        structure: what was walked, such as ``task_struct.tasks``.
        address: where the walk stood, None where there is none.
        reason: what was wrong.
    """

    structure: str
    address: Va | None
    reason: str


@dataclass(frozen=True, slots=True)
class Listing(Generic[Row_co]):
    """This is the answer to a question about the guest.

    Nothing found is ``items`` empty and ``gaps`` empty; what could not be looked at is a gap.
    """

    items: tuple[Row_co, ...]
    gaps: tuple[Gap, ...]
    provenance: Provenance

    def __iter__(self) -> Iterator[Row_co]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, place: int) -> Row_co: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[Row_co, ...]: ...

    def __getitem__(self, place: int | slice) -> Row_co | tuple[Row_co, ...]:
        return self.items[place]

    def find(self, **fields: object) -> Row_co | None:
        """This is the first row whose fields have these values, such as ``find(pid=1)``.

        Returns:
            None where none has; where there are gaps, that is not to say that there is none.

        Raises:
            UsageError: the rows have no such field.
        """
        for row in self.items:
            for name in fields:
                if not hasattr(row, name):
                    raise UsageError(f"a {type(row).__name__} has no field {name!r}")
            if all(getattr(row, name) == value for name, value in fields.items()):
                return row
        return None


class Evidence(msgspec.Struct, frozen=True, gc=False):
    """This is one reason to believe what was found.

    Args:
        claim: what is believed, such as ``KASLR slide 0x1c600000``.
        source: what says so, such as ``IDT gate 0``.
    """

    claim: str
    source: str


class GuestFacts(msgspec.Struct, frozen=True, kw_only=True):
    """This is what is known of the guest as a whole.

    Args:
        os: the family, such as ``linux``.
        release: such as ``6.1.0-56-cloud-amd64``.
        banner: the kernel's own banner line; its word, as ``release`` is: escape both for whatever
            they are printed on.
        architecture: ``x86_64`` or ``aarch64``.
        paging: such as ``5-level``.
        page_table_root: physical address of the kernel's top-level page table.
        page_table_isolation: whether user mode runs on page tables of its own.
        kernel_base: virtual address of the kernel image.
        kernel_slide: bytes by which KASLR moved it.
        build_id: of the kernel, hexadecimal; empty where it has none.
        uptime_s: seconds since boot, None where it could not be read.
        evidence: why all this is believed.
    """

    os: str
    release: str
    banner: str
    architecture: str
    paging: str
    page_table_root: int
    page_table_isolation: bool
    kernel_base: int
    kernel_slide: int
    build_id: str
    uptime_s: float | None
    evidence: tuple[Evidence, ...]


class GuestOS(Protocol):
    """This is the interface that is selected for the operating system that was found.

    Every method is synchronous, reads memory when it is called, and returns a listing that says
    how it was taken. A structure that cannot be walked at all raises WalkFailed.
    """

    def facts(self) -> GuestFacts:
        """This tells which system it is, and the evidence."""
        ...

    def processes(self) -> Listing[Process]:
        """This lists the processes that the kernel's own task list shows, in its order."""
        ...

    def process_ids(self) -> Listing[Process]:
        """This lists the processes that the initial pid namespace knows, by pid.

        It reads another structure than :meth:`processes` does, so that both can be compared.
        """
        ...

    def threads(self) -> Listing[Thread]:
        """This lists the threads of all processes."""
        ...

    def task_sightings(self) -> Listing[TaskSighting]:
        """This lists tasks once for each of the kernel's structures that leads to them.

        All but the list of processes, which :meth:`processes` reads.
        """
        ...

    def modules(self) -> Listing[Module]:
        """This lists the loaded kernel modules."""
        ...

    def mounts(self, process: Process | None = None) -> Listing[Mount]:
        """This lists the mounts that a process sees, with paths from its own root.

        Args:
            process: who sees them; None for those of all mount namespaces that have a process.
        """
        ...

    def open_files(self, process: Process | None = None) -> Listing[OpenFile]:
        """This lists the open files of a process, or of all."""
        ...

    def sockets(self, process: Process | None = None) -> Listing[Socket]:
        """This lists the sockets that a process has open, or all there are, nobody's among them."""
        ...

    def tabled_sockets(self) -> Listing[Socket]:
        """This lists the sockets of the kernel's own tables, whoever has them open; no row has a pid."""
        ...

    def mappings(self, process: Process | None = None) -> Listing[MemoryMapping]:
        """This lists the memory mappings of a process by address, or those of all processes."""
        ...

    def memory_content(
        self, process: Process, mapping: MemoryMapping, start: Va, limit: int
    ) -> Listing[MemoryRun]:
        """This gives what is in memory of a mapping from an address on, run behind run.

        Args:
            process: whose it is; of one that has ended there is nothing, and no gap.
            mapping: a row of :meth:`mappings`.
            start: where in it to begin.
            limit: how many bytes at most. Who goes on asks from the end of the last run on.
        """
        ...

    def command_lines(self, process: Process | None = None) -> Listing[CommandLine]:
        """This lists how a process was called, or how all were."""
        ...

    def programs(self, process: Process | None = None) -> Listing[Program]:
        """This lists what a process runs, who made and who traces it, or that of all."""
        ...

    def environment(self, process: Process | None = None) -> Listing[Variable]:
        """This lists the environment that a process was given, or those of all."""
        ...

    def credentials(self, process: Process | None = None) -> Listing[Credentials]:
        """This lists who a process is and what it may do, or who all are."""
        ...

    def namespaces(self, process: Process | None = None) -> Listing[Namespaces]:
        """This lists the namespaces of a process, or of all."""
        ...

    def cgroups(self, process: Process | None = None) -> Listing[Cgroup]:
        """This lists the cgroups of a process, or of all, and the containers that they tell."""
        ...

    def cgroup_hierarchies(self) -> Listing[CgroupHierarchy]:
        """This lists the hierarchies of cgroups."""
        ...

    def bpf_programs(self) -> Listing[BpfProgram]:
        """This lists the eBPF programs that the kernel has loaded, by id."""
        ...

    def stack(self, task: Process | Thread) -> Listing[StackFrame]:
        """This unwinds the kernel stack of a task, from where it stands outwards."""
        ...

    def log(self) -> Listing[LogRecord]:
        """This lists the records of the kernel's log that are still held, the oldest first."""
        ...

    def file_content(self, file: CachedFile, limit: int = 4096) -> Listing[FilePiece]:
        """This gives what is in memory of the beginning of a file; what is not is a gap.

        Args:
            file: a row of :meth:`cached_files`.
            limit: how many bytes of it, at most.
        """
        ...

    def cached_files(self, under: str = "") -> Listing[CachedFile]:
        """This lists the files that have pages in memory, those that nobody sees any more too.

        Args:
            under: an absolute path: only the files below it; empty for all.
        """
        ...

    def system_calls(self) -> Listing[CodePointer]:
        """This lists the entries of the kernel's tables of system calls; a wrong one says why."""
        ...

    def code_changes(self, baseline: CodeBaseline) -> Listing[CodeChange]:
        """This lists where the kernel's code, that of its modules, and its constants are not as they were.

        Args:
            baseline: what was seen before, which is brought up to date; an empty one at first: then it
                lists where the kernel changes its own code otherwise than it may.
        """
        ...

    def module_sightings(self) -> Listing[ModuleSighting]:
        """This lists in which structures each module was seen: one of them is the list of modules."""
        ...

    def interrupts(self) -> Listing[CodePointer]:
        """This lists where interrupts and exceptions lead; a wrong one says why."""
        ...

    def hooks(self) -> Listing[CodePointer]:
        """This lists the functions that others have hooked into the kernel; one that is nobody's says so."""
        ...

    def settings(self) -> Listing[KernelSetting]:
        """This lists the settings that name programs which the kernel starts itself."""
        ...
