"""A guest that answers with the rows it is given."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final, Generic, TypeVar

from msgspec import Struct

from qvmi.addr import Va
from qvmi.errors import UsageError
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
from qvmi.semantics.rows.processes import require_task
from qvmi.testing.faults import Faults
from qvmi.view import Provenance, Taken

__all__ = ["FakeGuest"]

_PROVENANCE: Final = Provenance(Taken.LIVE, at=0.0)

_FACTS: Final = GuestFacts(
    os="linux",
    release="6.1.0-fake",
    banner="Linux version 6.1.0-fake",
    architecture="x86_64",
    paging="4-level",
    page_table_root=0x1000,
    page_table_isolation=False,
    kernel_base=0xFFFF_FFFF_8100_0000,
    kernel_slide=0,
    build_id="",
    uptime_s=60.0,
    evidence=(),
)

_QUESTIONS: Final = (
    *("facts", "processes", "process_ids", "threads", "modules", "mounts", "open_files"),
    *("sockets", "mappings", "command_lines", "environment", "log", "cached_files"),
    *("credentials", "namespaces", "cgroups", "bpf_programs", "stack"),
    *("task_sightings", "programs", "file_content", "tabled_sockets"),
    *("cgroup_hierarchies", "memory_content"),
    *("system_calls", "code_changes", "module_sightings", "interrupts", "hooks", "settings"),
)

Row = TypeVar("Row")
OwnedRow = TypeVar(
    "OwnedRow",
    OpenFile,
    Socket,
    MemoryMapping,
    CommandLine,
    Variable,
    Credentials,
    Namespaces,
    Cgroup,
    Program,
    StackFrame,
)


class FakeGuest:
    """This is a guest that answers with the rows it is given.

    It is a :class:`~qvmi.semantics.guest_os.GuestOS`.

    Args:
        processes: what the task list shows.
        process_ids: what the pid namespace shows; None for the same as the task list.
        threads: all threads.
        tabled_sockets: those of the kernel's own tables; None for the same as ``sockets``.
        task_sightings: what the other structures of the kernel lead to.
        modules: all modules.
        mounts: what every process sees; ``cgroup_hierarchies``, ``log``, ``cached_files``,
            ``bpf_programs``: the kernel's.
        open_files, sockets, mappings, command_lines, environment, credentials, namespaces, cgroups,
            programs, stack: those of all processes; who asks for one gets the rows with its pid.
        system_calls, code_changes, module_sightings, interrupts, hooks, settings: the kernel's.

    Attributes:
        calls: the methods that were called, in order, also those that failed.
        contents: of files, by path.
        memory: of processes: what is at an address, by that and the pid.
        provenance: what listings say of how they were taken.
        guest_facts: what :meth:`facts` answers.
    """

    def __init__(  # noqa: PLR0913, PLR0915 - one for each question
        self,
        *,
        processes: Iterable[Process] = (),
        process_ids: Iterable[Process] | None = None,
        threads: Iterable[Thread] = (),
        modules: Iterable[Module] = (),
        mounts: Iterable[Mount] = (),
        open_files: Iterable[OpenFile] = (),
        sockets: Iterable[Socket] = (),
        mappings: Iterable[MemoryMapping] = (),
        command_lines: Iterable[CommandLine] = (),
        environment: Iterable[Variable] = (),
        log: Iterable[LogRecord] = (),
        credentials: Iterable[Credentials] = (),
        namespaces: Iterable[Namespaces] = (),
        cgroups: Iterable[Cgroup] = (),
        bpf_programs: Iterable[BpfProgram] = (),
        cached_files: Iterable[CachedFile] = (),
        stack: Iterable[StackFrame] = (),
        system_calls: Iterable[CodePointer] = (),
        code_changes: Iterable[CodeChange] = (),
        settings: Iterable[KernelSetting] = (),
        hooks: Iterable[CodePointer] = (),
        interrupts: Iterable[CodePointer] = (),
        module_sightings: Iterable[ModuleSighting] = (),
        task_sightings: Iterable[TaskSighting] = (),
        programs: Iterable[Program] = (),
        contents: Mapping[str, bytes] | None = None,
        tabled_sockets: Iterable[Socket] | None = None,
        cgroup_hierarchies: Iterable[CgroupHierarchy] = (),
    ) -> None:
        self.calls: list[str] = []
        self.provenance = _PROVENANCE
        self.guest_facts = _FACTS
        self._processes = _Answers(listed := tuple(processes))
        self._process_ids = _Answers(listed if process_ids is None else process_ids)
        self._threads = _Answers(threads)
        self._modules = _Answers(modules)
        self._mounts = _Answers(mounts)
        self._open_files = _Answers(open_files)
        self._sockets = _Answers(listed_sockets := tuple(sockets))
        self._mappings = _Answers(mappings)
        self._command_lines = _Answers(command_lines)
        self._environment = _Answers(environment)
        self._log = _Answers(log)
        self._credentials = _Answers(credentials)
        self._namespaces = _Answers(namespaces)
        self._cgroups = _Answers(cgroups)
        self._bpf_programs = _Answers(bpf_programs)
        self._cached_files = _Answers(cached_files)
        self._stack = _Answers(stack)
        self._system_calls = _Answers(system_calls)
        self._code_changes = _Answers(code_changes)
        self._module_sightings = _Answers(module_sightings)
        self._interrupts = _Answers(interrupts)
        self._hooks = _Answers(hooks)
        self._settings = _Answers(settings)
        self._task_sightings, self._programs = _Answers(task_sightings), _Answers(programs)
        self._tabled_sockets = _Answers(
            listed_sockets if tabled_sockets is None else tabled_sockets
        )
        self._cgroup_hierarchies = _Answers(cgroup_hierarchies)
        self.contents = dict(contents or {})
        self.memory: dict[tuple[int, Va], bytes] = {}
        self._faults = Faults(_QUESTIONS)

    def fail_next(self, method: str, error: Exception) -> None:
        """This makes the next call of a method raise the error; several wait for their turn."""
        self._faults.arm(method, error)

    def show_processes(
        self, rows: Iterable[Process], *, gaps: Iterable[Gap] = (), once: bool = False
    ) -> None:
        """This changes what the task list shows, for good or for one call; several take turns."""
        self._processes.change(rows, gaps, once=once)

    def show_process_ids(
        self, rows: Iterable[Process], *, gaps: Iterable[Gap] = (), once: bool = False
    ) -> None:
        """This changes what the pid namespace shows, for good or for one call."""
        self._process_ids.change(rows, gaps, once=once)

    def show_threads(
        self, rows: Iterable[Thread], *, gaps: Iterable[Gap] = (), once: bool = False
    ) -> None:
        """This changes the threads, for good or for one call."""
        self._threads.change(rows, gaps, once=once)

    def show_mappings(
        self, rows: Iterable[MemoryMapping], *, gaps: Iterable[Gap] = (), once: bool = False
    ) -> None:
        """This changes the mappings of all processes, for good or for one call."""
        self._mappings.change(rows, gaps, once=once)

    def show_modules(
        self, rows: Iterable[Module], *, gaps: Iterable[Gap] = (), once: bool = False
    ) -> None:
        """This changes the modules, for good or for one call."""
        self._modules.change(rows, gaps, once=once)

    def show(
        self, question: str, rows: Iterable[Struct], *, gaps: Iterable[Gap] = (), once: bool = False
    ) -> None:
        """This changes the answer to a question such as ``log``, for good or once."""
        answers = vars(self).get(f"_{question}")
        if not isinstance(answers, _Answers):
            there = ", ".join(name for name in _QUESTIONS if f"_{name}" in vars(self))
            raise UsageError(f"no listing {question!r}; there are {there}")
        answers.change(rows, gaps, once=once)

    def facts(self) -> GuestFacts:
        """This tells which system it is."""
        self._called("facts")
        return self.guest_facts

    def processes(self) -> Listing[Process]:
        """This lists what the task list shows."""
        return self._answer("processes", self._processes)

    def process_ids(self) -> Listing[Process]:
        """This lists what the pid namespace shows."""
        return self._answer("process_ids", self._process_ids)

    def threads(self) -> Listing[Thread]:
        """This lists the threads."""
        return self._answer("threads", self._threads)

    def task_sightings(self) -> Listing[TaskSighting]:
        """This lists what the other structures of the kernel lead to."""
        return self._answer("task_sightings", self._task_sightings)

    def modules(self) -> Listing[Module]:
        """This lists the modules."""
        return self._answer("modules", self._modules)

    def mounts(self, process: Process | None = None) -> Listing[Mount]:  # noqa: ARG002 - all see the same
        """This lists the mounts, the same whoever sees them."""
        return self._answer("mounts", self._mounts)

    def open_files(self, process: Process | None = None) -> Listing[OpenFile]:
        """This lists the open files of a process, or of all."""
        return _owned(self._answer("open_files", self._open_files), process)

    def sockets(self, process: Process | None = None) -> Listing[Socket]:
        """This lists the sockets of a process, or of all."""
        return _owned(self._answer("sockets", self._sockets), process)

    def tabled_sockets(self) -> Listing[Socket]:
        """This lists the sockets of the kernel's own tables."""
        return self._answer("tabled_sockets", self._tabled_sockets)

    def mappings(self, process: Process | None = None) -> Listing[MemoryMapping]:
        """This lists the mappings of a process, or of all."""
        return _owned(self._answer("mappings", self._mappings), process)

    def command_lines(self, process: Process | None = None) -> Listing[CommandLine]:
        """This lists the command line of a process, or those of all."""
        return _owned(self._answer("command_lines", self._command_lines), process)

    def programs(self, process: Process | None = None) -> Listing[Program]:
        """This lists what a process runs, or what all do."""
        return _owned(self._answer("programs", self._programs), process)

    def environment(self, process: Process | None = None) -> Listing[Variable]:
        """This lists the environment of a process, or those of all."""
        return _owned(self._answer("environment", self._environment), process)

    def credentials(self, process: Process | None = None) -> Listing[Credentials]:
        """This lists the credentials of a process, or of all."""
        return _owned(self._answer("credentials", self._credentials), process)

    def namespaces(self, process: Process | None = None) -> Listing[Namespaces]:
        """This lists the namespaces of a process, or of all."""
        return _owned(self._answer("namespaces", self._namespaces), process)

    def cgroups(self, process: Process | None = None) -> Listing[Cgroup]:
        """This lists the cgroups of a process, or of all."""
        return _owned(self._answer("cgroups", self._cgroups), process)

    def cgroup_hierarchies(self) -> Listing[CgroupHierarchy]:
        """This lists the hierarchies of cgroups."""
        return self._answer("cgroup_hierarchies", self._cgroup_hierarchies)

    def bpf_programs(self) -> Listing[BpfProgram]:
        """This lists the eBPF programs."""
        return self._answer("bpf_programs", self._bpf_programs)

    def log(self) -> Listing[LogRecord]:
        """This lists the kernel's log."""
        return self._answer("log", self._log)

    def cached_files(self, under: str = "") -> Listing[CachedFile]:  # noqa: ARG002 - all are there
        """This lists the files that have pages in memory."""
        return self._answer("cached_files", self._cached_files)

    def file_content(self, file: CachedFile, limit: int = 4096) -> Listing[FilePiece]:
        """This gives the content that a path was given."""
        self._called("file_content")
        data = self.contents.get(file.path, b"")[:limit]
        pieces = (FilePiece(0, data),) if data else ()
        return Listing(items=pieces, gaps=(), provenance=self.provenance)

    def memory_content(
        self, process: Process, mapping: MemoryMapping, start: Va, limit: int
    ) -> Listing[MemoryRun]:
        """This gives what was put into the memory of a process; the rest of a mapping is none."""
        self._called("memory_content")
        runs = _runs(self.memory, process.pid, (start, mapping.end), limit)
        return Listing(items=tuple(runs), gaps=(), provenance=self.provenance)

    def stack(self, task: Process | Thread) -> Listing[StackFrame]:
        """This unwinds the kernel stack of a task."""
        return _owned(self._answer("stack", self._stack), task)

    def system_calls(self) -> Listing[CodePointer]:
        """This lists the entries of tables of system calls."""
        return self._answer("system_calls", self._system_calls)

    def code_changes(self, baseline: CodeBaseline) -> Listing[CodeChange]:  # noqa: ARG002 - all of it is given
        """This lists the changes of code."""
        return self._answer("code_changes", self._code_changes)

    def module_sightings(self) -> Listing[ModuleSighting]:
        """This lists the sightings of modules."""
        return self._answer("module_sightings", self._module_sightings)

    def interrupts(self) -> Listing[CodePointer]:
        """This lists where interrupts lead."""
        return self._answer("interrupts", self._interrupts)

    def hooks(self) -> Listing[CodePointer]:
        """This lists hooked functions."""
        return self._answer("hooks", self._hooks)

    def settings(self) -> Listing[KernelSetting]:
        """This lists settings of the kernel."""
        return self._answer("settings", self._settings)

    def _answer(self, method: str, answers: "_Answers[Row]") -> Listing[Row]:
        self._called(method)
        return answers.listing(self.provenance)

    def _called(self, method: str) -> None:
        self.calls.append(method)
        self._faults.go_off(method)


def _owned(listing: Listing[OwnedRow], process: Process | Thread | None) -> Listing[OwnedRow]:
    """This leaves only the rows of one process, if one is meant."""
    if process is None:
        return listing
    require_task(process)
    return replace(listing, items=tuple(row for row in listing if row.pid == process.pid))


def _runs(
    memory: Mapping[tuple[int, Va], bytes], pid: int, bounds: tuple[Va, Va], limit: int
) -> Iterator[MemoryRun]:
    """This cuts what is in a range out of the memory of a process."""
    reached, end = bounds
    for (owner, at), data in sorted(memory.items()):
        first, last = max(at, reached), min(at + len(data), end)
        if owner == pid and first < last and limit:
            if reached < first:
                yield MemoryRun(reached, Va(first), b"")
            last = min(last, first + limit)
            yield MemoryRun(Va(first), Va(last), data[first - at : last - at])
            reached, limit = Va(last), limit - (last - first)
    if limit and reached < end:
        yield MemoryRun(reached, end, b"")


class _Answers(Generic[Row]):
    """What one method of a fake guest answers: first what was given for one call, then the rest."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._standing: tuple[tuple[Row, ...], tuple[Gap, ...]] = (tuple(rows), ())
        self._once: deque[tuple[tuple[Row, ...], tuple[Gap, ...]]] = deque()

    def change(self, rows: Iterable[Row], gaps: Iterable[Gap], *, once: bool) -> None:
        answer = (tuple(rows), tuple(gaps))
        if once:
            self._once.append(answer)
        else:
            self._standing = answer

    def listing(self, provenance: Provenance) -> Listing[Row]:
        rows, gaps = self._once.popleft() if self._once else self._standing
        return Listing(items=rows, gaps=gaps, provenance=provenance)
