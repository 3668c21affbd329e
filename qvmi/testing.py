"""Fakes with call logs and armed faults, to test codepacks and what is built on qvmi without a machine.

>>> from qvmi.codepacks.hidden_processes import HiddenProcesses
>>> from qvmi.testing import FakeGuest, FakeMemory, fake_process
>>> init, evil = fake_process(1, name="init"), fake_process(666, name="evil")
>>> guest = FakeGuest(processes=[init], process_ids=[init, evil])
>>> [finding.claim for finding in HiddenProcesses().inspect(guest, FakeMemory({}))]
['process 666 (evil) is in init_pid_ns.idr but not in init_task.tasks']
>>> guest.calls
['processes', 'process_ids', 'processes', 'process_ids']
"""

import mmap
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar

import msgspec
from msgspec import Struct

from qvmi.addr import PAGE_SIZE, Pa, PaRange, Va
from qvmi.errors import MemoryFault, NotDirect, UsageError
from qvmi.memory.physical import Window
from qvmi.semantics.guest_os import (
    BpfProgram,
    CachedFile,
    Cgroup,
    CommandLine,
    Credentials,
    Gap,
    GuestFacts,
    Listing,
    LogRecord,
    MemoryMapping,
    Module,
    Mount,
    Namespaces,
    OpenFile,
    Process,
    Socket,
    StackFrame,
    Thread,
    Variable,
)
from qvmi.view import Provenance, Taken

__all__ = ["FakeGuest", "FakeMachine", "FakeMemory", "MemoryRead", "fake_process"]

_TASKS, _TASK_SPACING = 0xFFFF_8880_0000_0000, 0x4000

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
    StackFrame,
)
Found = TypeVar("Found")


def fake_process(pid: int, *, name: str = "fake", **changes: object) -> Process:
    """This makes a process with an address and a start time of its own; ``changes`` are fields."""
    process = Process(
        pid=pid,
        tgid=pid,
        ppid=min(pid - 1, 1),
        uid=0,
        gid=0,
        state="S",
        name=name,
        address=Va(_TASKS + pid * _TASK_SPACING),
        kernel_thread=False,
        start_time_s=float(pid),
    )
    return msgspec.structs.replace(process, **changes)


class _Faults:
    """Errors that wait to be raised by a method, each once."""

    def __init__(self, methods: Iterable[str]) -> None:
        self._armed: dict[str, deque[Exception]] = {method: deque() for method in methods}

    def arm(self, method: str, error: Exception) -> None:
        if method not in self._armed:
            raise UsageError(f"no method {method!r}; there are {', '.join(self._armed)}")
        self._armed[method].append(error)

    def go_off(self, method: str) -> None:
        if self._armed[method]:
            raise self._armed[method].popleft()


class FakeGuest:
    """This is a guest that answers with the rows it is given.

    It is a :class:`~qvmi.semantics.guest_os.GuestOS`.

    Args:
        processes: what the task list shows.
        process_ids: what the pid namespace shows; None for the same as the task list.
        threads: all threads.
        modules: all modules.
        mounts: what every process sees; ``log``, ``cached_files``, ``bpf_programs``: the kernel's.
        open_files, sockets, mappings, command_lines, environment, credentials, namespaces, cgroups,
            stack: those of all processes; who asks for one gets the rows with its pid.

    Attributes:
        calls: the methods that were called, in order, also those that failed.
        provenance: what listings say of how they were taken.
        guest_facts: what :meth:`facts` answers.
    """

    def __init__(  # noqa: PLR0913 - one for each question
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
        self._sockets = _Answers(sockets)
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
        self._faults = _Faults(_QUESTIONS)

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
            raise UsageError(f"no listing {question!r}; there are {', '.join(_QUESTIONS[1:])}")
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

    def mappings(self, process: Process | None = None) -> Listing[MemoryMapping]:
        """This lists the mappings of a process, or of all."""
        return _owned(self._answer("mappings", self._mappings), process)

    def command_lines(self, process: Process | None = None) -> Listing[CommandLine]:
        """This lists the command line of a process, or those of all."""
        return _owned(self._answer("command_lines", self._command_lines), process)

    def environment(self, process: Process) -> Listing[Variable]:
        """This lists the environment of a process."""
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

    def bpf_programs(self) -> Listing[BpfProgram]:
        """This lists the eBPF programs."""
        return self._answer("bpf_programs", self._bpf_programs)

    def log(self) -> Listing[LogRecord]:
        """This lists the kernel's log."""
        return self._answer("log", self._log)

    def cached_files(self, under: str = "") -> Listing[CachedFile]:  # noqa: ARG002 - all are there
        """This lists the files that have pages in memory."""
        return self._answer("cached_files", self._cached_files)

    def stack(self, task: Process | Thread) -> Listing[StackFrame]:
        """This unwinds the kernel stack of a task."""
        return _owned(self._answer("stack", self._stack), task)

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
    return replace(listing, items=tuple(row for row in listing if row.pid == process.pid))


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


@dataclass(frozen=True, slots=True)
class MemoryRead:
    """This is one call of :meth:`FakeMemory.read`."""

    pa: Pa
    size: int


class FakeMemory:
    """This is guest memory that holds the bytes it is given.

    It is a :class:`~qvmi.memory.physical.PhysicalMemory`.

    Args:
        runs: bytes by the guest physical address they begin at.
        mapped: whether there are windows, as with a mapped RAM file, or reads only.

    Attributes:
        reads: the reads, in order, also those that failed.

    Raises:
        UsageError: runs overlap.
    """

    def __init__(self, runs: Mapping[Pa, bytes], *, mapped: bool = False) -> None:
        self.reads: list[MemoryRead] = []
        self._runs = _merged(runs)
        self._faults = _Faults(("read",))
        self._windows = tuple(_window(pa, data) for pa, data in self._runs.items() if mapped)

    @property
    def description(self) -> str:
        """This says that the bytes are made up."""
        return "bytes of a test"

    @property
    def ranges(self) -> Sequence[PaRange]:
        """These are the runs, those that touch joined."""
        return [PaRange(pa, Pa(pa + len(data))) for pa, data in self._runs.items()]

    @property
    def windows(self) -> Sequence[Window]:
        """These are read-only mappings of the runs, if there are to be any."""
        return self._windows

    def fail_next(self, error: MemoryFault) -> None:
        """This makes the next read raise the error; several wait for their turn."""
        self._faults.arm("read", error)

    def read(self, pa: Pa, size: int) -> bytes:
        """This reads exactly ``size`` bytes; MemoryFault where there are none."""
        self.reads.append(MemoryRead(pa, size))
        self._faults.go_off("read")
        for start, data in self._runs.items():
            if start <= pa < start + len(data) and size >= 0:
                found = data[pa - start : pa - start + size]
                if len(found) < size:
                    raise MemoryFault(pa + len(found), size, why="no RAM")
                return found
        raise MemoryFault(pa, size, why="no RAM")

    def data_ranges(self) -> Iterator[PaRange]:
        """These are the runs without those of their pages that hold nothing but zeros."""
        for start, data in self._runs.items():
            yield from _nonzero(start, data)

    def close(self) -> None:
        """This lets go of the bytes; later reads raise MemoryFault."""
        self._runs = {}
        for window in self._windows:
            window.buffer.close()
        self._windows = ()


class FakeMachine:
    """This is a machine with a fake guest; watches and runners take it for a real one.

    Args:
        direct: whether its memory answers at once; otherwise there is only :meth:`query`.

    Attributes:
        address: what it was attached by.
        memory: its memory.
        epoch: raised by :meth:`reset`.
        calls: ``guest``, ``query``, ``capture``, ``refresh`` and ``run_state``, in order, also those
            that failed.
    """

    def __init__(
        self,
        guest: FakeGuest | None = None,
        memory: FakeMemory | None = None,
        *,
        address: str = "/run/fake/qmp.sock",
        direct: bool = True,
    ) -> None:
        self.address = address
        self.memory = memory or FakeMemory({})
        self.epoch = 0
        self.calls: list[str] = []
        self._guest = guest or FakeGuest()
        self._direct = direct
        self._faults = _Faults(("guest", "query", "capture", "refresh", "run_state"))

    @property
    def guest(self) -> FakeGuest:
        """This is the fake guest, or the error that was armed for it."""
        self._called("guest")
        if not self._direct:
            raise NotDirect("the memory of this fake is not direct: use `await machine.query(…)`")
        return self._guest

    async def query(self, look: Callable[[FakeGuest], Found], *, timeout_s: float = 60.0) -> Found:
        """This looks at the fake guest, or raises what was armed for it; it knows no time."""
        del timeout_s
        self._called("query")
        return look(self._guest)

    async def capture(self, walk: Callable[[FakeGuest], Found]) -> Found:
        """This does the walk over the fake guest, or raises what was armed for it."""
        self._called("capture")
        return walk(self._guest)

    async def refresh(self) -> None:
        """This does nothing, or raises what was armed for it."""
        self._called("refresh")

    async def run_state(self) -> str:
        """This says ``running``, or raises what was armed for it."""
        self._called("run_state")
        return "running"

    def fail_next(self, member: str, error: Exception) -> None:
        """This makes the next use of a member raise the error; several wait for their turn."""
        self._faults.arm(member, error)

    def reset(self, guest: FakeGuest) -> None:
        """This puts another guest into the machine, as a reset does."""
        self._guest = guest
        self.epoch += 1

    def _called(self, member: str) -> None:
        self.calls.append(member)
        self._faults.go_off(member)


def _merged(runs: Mapping[Pa, bytes]) -> dict[Pa, bytes]:
    """These are the runs in rising order, those that touch joined."""
    merged: dict[Pa, bytes] = {}
    start, end = Pa(0), -1
    for pa, data in sorted(runs.items()):
        if pa < end:
            raise UsageError(f"runs overlap at {pa:#x}")
        if pa > end:
            start = pa
        merged[start] = merged.get(start, b"") + data
        end = pa + len(data)
    return {pa: data for pa, data in merged.items() if data}


def _window(pa: Pa, data: bytes) -> Window:
    file = os.memfd_create("qvmi-fake-memory", os.MFD_CLOEXEC)
    try:
        os.truncate(file, len(data))
        with mmap.mmap(file, len(data)) as writable:
            writable[:] = data
        buffer = mmap.mmap(file, len(data), access=mmap.ACCESS_READ)
    finally:
        os.close(file)
    return Window(start=pa, end=Pa(pa + len(data)), buffer=buffer, offset=0)


def _nonzero(start: Pa, data: bytes) -> Iterator[PaRange]:
    """These are the parts of a run, in whole pages where it has whole ones, that are not all zero."""
    first: int | None = None
    position = 0
    while position < len(data):
        step = PAGE_SIZE - (start + position) % PAGE_SIZE
        if any(data[position : position + step]):
            first = position if first is None else first
        elif first is not None:
            yield PaRange(Pa(start + first), Pa(start + position))
            first = None
        position += step
    if first is not None:
        yield PaRange(Pa(start + first), Pa(start + len(data)))
