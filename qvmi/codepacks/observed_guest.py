"""A guest that notes, for whoever runs a codepack, what the codepack could not see in it."""

import time
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Final, TypeVar

from qvmi.addr import Va
from qvmi.codepacks.shared_answers import SharedAnswers, question_of
from qvmi.errors import CodepackError, WalkFailed
from qvmi.semantics.guest_os import (
    BpfProgram,
    CachedFile,
    Cgroup,
    CgroupHierarchy,
    CodeBaseline,
    CodeChange,
    CodePointer,
    CommandLine,
    Credentials,
    FilePiece,
    Gap,
    GuestFacts,
    GuestOS,
    KernelSetting,
    Listing,
    LogRecord,
    MemoryMapping,
    MemoryRun,
    Module,
    ModuleSighting,
    Mount,
    Namespaces,
    OpenFile,
    Process,
    Program,
    Socket,
    StackFrame,
    TaskSighting,
    Thread,
    Variable,
)
from qvmi.view import Provenance

__all__ = ["MAX_NOTED_GAPS", "ObservedGuest"]

MAX_NOTED_GAPS: Final = 32
"""Gaps kept of one look; the rest is counted."""

Row = TypeVar("Row")


class ObservedGuest:
    """This is a guest whose listings are noted; see :class:`~qvmi.semantics.guest_os.GuestOS`.

    Args:
        guest: whom it asks.
        codepack: who asks.
        shared: answers of other codepacks that will do; None for none.
        not_before: when an answer must have been begun to be of use, on the monotonic clock.

    Attributes:
        gaps: the first MAX_NOTED_GAPS parts of the guest that could not be seen.
        gap_count: all of them.
        provenance: how the listings were taken: the earliest beginning, the retries of all; None
            while there were none.
    """

    def __init__(
        self,
        guest: GuestOS,
        codepack: str,
        *,
        shared: SharedAnswers | None = None,
        not_before: float = 0.0,
    ) -> None:
        self.gaps: list[Gap] = []
        self.gap_count = 0
        self.provenance: Provenance | None = None
        self._guest = guest
        self._codepack = codepack
        self._withdrawn = False
        self._shared = shared
        self._not_before = not_before
        self._heard: dict[Hashable, float] = {}

    def withdraw(self) -> None:
        """This ends the look: whatever is asked from now on raises CodepackError."""
        self._withdrawn = True

    def note(self, listing: Listing[Any]) -> None:
        """This takes a listing that was asked elsewhere for one of the look's: its gaps, how it was taken."""
        for gap in listing.gaps:
            self.note_gap(gap)
        self._note_provenance(listing.provenance)

    def note_gap(self, gap: Gap) -> None:
        """This notes a part of the guest that could not be seen, or that the codepack has left out."""
        self.gap_count += 1
        if len(self.gaps) < MAX_NOTED_GAPS:
            self.gaps.append(gap)

    def facts(self) -> GuestFacts:
        """This tells which system it is, and the evidence."""
        self._require_not_withdrawn()
        return self._guest.facts()

    def processes(self) -> Listing[Process]:
        """This lists the processes that the kernel's own task list shows."""
        return self._noted(self._guest.processes)

    def process_ids(self) -> Listing[Process]:
        """This lists the processes that the initial pid namespace knows."""
        return self._noted(self._guest.process_ids)

    def threads(self) -> Listing[Thread]:
        """This lists the threads of all processes."""
        return self._noted(self._guest.threads)

    def task_sightings(self) -> Listing[TaskSighting]:
        """This lists tasks once for each of the kernel's structures that leads to them."""
        return self._noted(self._guest.task_sightings)

    def modules(self) -> Listing[Module]:
        """This lists the loaded kernel modules."""
        return self._noted(self._guest.modules)

    def mounts(self, process: Process | None = None) -> Listing[Mount]:
        """This lists the mounts that a process sees, or those of all mount namespaces."""
        return self._noted(partial(self._guest.mounts, process))

    def open_files(self, process: Process | None = None) -> Listing[OpenFile]:
        """This lists the open files of a process, or of all."""
        return self._noted(partial(self._guest.open_files, process))

    def sockets(self, process: Process | None = None) -> Listing[Socket]:
        """This lists the sockets that a process has open, or that all have."""
        return self._noted(partial(self._guest.sockets, process))

    def tabled_sockets(self) -> Listing[Socket]:
        """This lists the sockets of the kernel's own tables, whoever has them open."""
        return self._noted(self._guest.tabled_sockets)

    def mappings(self, process: Process | None = None) -> Listing[MemoryMapping]:
        """This lists the memory mappings of a process, or of all."""
        return self._noted(partial(self._guest.mappings, process))

    def memory_content(
        self, process: Process, mapping: MemoryMapping, start: Va, limit: int
    ) -> Listing[MemoryRun]:
        """This gives what is in memory of a mapping from an address on."""
        # A function, so that nobody keeps what may be megabytes.
        return self._noted(lambda: self._guest.memory_content(process, mapping, start, limit))

    def command_lines(self, process: Process | None = None) -> Listing[CommandLine]:
        """This lists how a process was called, or how all were."""
        return self._noted(partial(self._guest.command_lines, process))

    def programs(self, process: Process | None = None) -> Listing[Program]:
        """This lists what a process runs, who made and who traces it, or that of all."""
        return self._noted(partial(self._guest.programs, process))

    def environment(self, process: Process | None = None) -> Listing[Variable]:
        """This lists the environment that a process was given, or those of all."""
        return self._noted(partial(self._guest.environment, process))

    def credentials(self, process: Process | None = None) -> Listing[Credentials]:
        """This lists who a process is and what it may do, or who all are."""
        return self._noted(partial(self._guest.credentials, process))

    def namespaces(self, process: Process | None = None) -> Listing[Namespaces]:
        """This lists the namespaces of a process, or of all."""
        return self._noted(partial(self._guest.namespaces, process))

    def cgroups(self, process: Process | None = None) -> Listing[Cgroup]:
        """This lists the cgroups of a process, or of all, and the containers that they tell."""
        return self._noted(partial(self._guest.cgroups, process))

    def cgroup_hierarchies(self) -> Listing[CgroupHierarchy]:
        """This lists the hierarchies of cgroups."""
        return self._noted(self._guest.cgroup_hierarchies)

    def bpf_programs(self) -> Listing[BpfProgram]:
        """This lists the eBPF programs that the kernel has loaded."""
        return self._noted(self._guest.bpf_programs)

    def log(self) -> Listing[LogRecord]:
        """This lists the records of the kernel's log."""
        return self._noted(self._guest.log)

    def cached_files(self, under: str = "") -> Listing[CachedFile]:
        """This lists the files that have pages in memory."""
        return self._noted(partial(self._guest.cached_files, under))

    def file_content(self, file: CachedFile, limit: int = 4096) -> Listing[FilePiece]:
        """This gives what is in memory of the beginning of a file."""
        return self._noted(partial(self._guest.file_content, file, limit))

    def stack(self, task: Process | Thread) -> Listing[StackFrame]:
        """This unwinds the kernel stack of a task."""
        return self._noted(partial(self._guest.stack, task))

    def system_calls(self) -> Listing[CodePointer]:
        """This lists the entries of the kernel's tables of system calls."""
        return self._noted(self._guest.system_calls)

    def code_changes(self, baseline: CodeBaseline) -> Listing[CodeChange]:
        """This lists where the kernel's code is not as it was."""
        return self._noted(lambda: self._guest.code_changes(baseline))

    def module_sightings(self) -> Listing[ModuleSighting]:
        """This lists in which structures each module was seen: one of them is the list of modules."""
        return self._noted(self._guest.module_sightings)

    def interrupts(self) -> Listing[CodePointer]:
        """This lists where interrupts and exceptions lead; a wrong one says why."""
        return self._noted(self._guest.interrupts)

    def hooks(self) -> Listing[CodePointer]:
        """This lists the functions that others have hooked into the kernel; one that is nobody's says so."""
        return self._noted(self._guest.hooks)

    def settings(self) -> Listing[KernelSetting]:
        """This lists the settings that name programs which the kernel starts itself."""
        return self._noted(self._guest.settings)

    def _noted(self, ask: Callable[[], Listing[Row]]) -> Listing[Row]:
        self._require_not_withdrawn()
        try:
            listing = self._answer(ask)
        except WalkFailed as error:
            self.note_gap(Gap(error.structure, None, error.problem))
            raise
        self.note(listing)
        return listing

    def _answer(self, ask: Callable[[], Listing[Row]]) -> Listing[Row]:
        """This asks, or takes what another codepack was told a moment ago."""
        question = None if self._shared is None else question_of(ask)
        if self._shared is None or question is None:
            return ask()
        not_before = self._heard.get(question, self._not_before)
        listing = self._shared.answer(self._guest, question, ask, not_before=not_before)
        self._heard[question] = time.monotonic()
        return listing

    def _note_provenance(self, new: Provenance) -> None:
        old = self.provenance
        self.provenance = new if old is None else _joined(old, new)

    def _require_not_withdrawn(self) -> None:
        if self._withdrawn:
            raise CodepackError(self._codepack, "asks about the guest after its time was up")


def _joined(first: Provenance, second: Provenance) -> Provenance:
    return Provenance(
        taken=first.taken,
        at=min(first.at, second.at),
        pause_s=first.pause_s + second.pause_s,
        epoch=max(first.epoch, second.epoch),
        retries=first.retries + second.retries,
    )
