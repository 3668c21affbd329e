"""Linux as the selected interface: each question answered by the file named like its subsystem."""

from functools import cached_property, partial
from typing import TYPE_CHECKING, TypeVar

from qvmi.addr import Va
from qvmi.arch import aarch64, x86_64
from qvmi.errors import LayoutNotFound
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import (
    BpfProgram,
    CachedFile,
    Cgroup,
    CommandLine,
    Credentials,
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
)
from qvmi.semantics.linux.fs.file_content import FileContents, Write
from qvmi.semantics.linux.kernel.discovery import Kernel, vmcoreinfo_text
from qvmi.semantics.linux.kernel.guest_symbols import Additions, GuestSymbols
from qvmi.semantics.linux.kernel_questions import KernelQuestions
from qvmi.semantics.linux.modules.module_symbols import ModuleSymbol
from qvmi.semantics.linux.modules.module_types import ModuleBtf, ModuleTypes
from qvmi.semantics.linux.process_questions import ProcessQuestions
from qvmi.semantics.linux.structures.effort import Effort
from qvmi.semantics.linux.structures.list import ListWalk
from qvmi.semantics.linux.tasks.current import current_task
from qvmi.semantics.linux.tasks.mm import user_space
from qvmi.semantics.linux.timekeeping import boot_time_s
from qvmi.semantics.rows.cached_files import MissingRange
from qvmi.semantics.rows.percpu import PerCpuValue
from qvmi.semantics.rows.process_memory import MemoryPiece
from qvmi.semantics.rows.processes import require_task
from qvmi.symbols.layout import NearestSymbol
from qvmi.symbols.live import LiveSymbols
from qvmi.view import Taken, View

if TYPE_CHECKING:
    from qvmi.semantics.linux.owners.page_owner import PageOwners
    from qvmi.semantics.linux.process_image import ProcessImage
    from qvmi.semantics.linux.stacks.stack import TaskStacks

__all__ = ["LinuxGuest"]

Row = TypeVar("Row")


class LinuxGuest(KernelQuestions, ProcessQuestions):
    """This answers for one Linux kernel. It implements :class:`qvmi.semantics.guest_os.GuestOS`.

    Args:
        view: how the guest is looked at; its label goes onto every listing.
        kernel: the kernel that runs there.
        additions: symbol files that were added; none unless told otherwise.

    Every question raises StaleView, or MachineGone, once another kernel runs there or none.
    """

    def __init__(self, view: View, kernel: Kernel, additions: Additions | None = None) -> None:
        self.view = view
        self.kernel = kernel
        self._additions = additions or Additions()

    def over(self, view: View) -> "LinuxGuest":
        """This is the same guest seen through another view, such as a copy of its memory."""
        other = LinuxGuest(view, self.kernel.over(view.memory), self._additions)
        if other.kernel is self.kernel:
            # The walkers were made for this memory: a guest that stands still does not wait for it.
            made = {name: walker for name, walker in vars(self).items() if name in _WALKERS}
            vars(other).update(made)
        return other

    def facts(self) -> GuestFacts:
        """This tells which kernel it is, and the evidence.

        Raises:
            StaleView: another kernel runs now.
        """
        self.require_current()
        kernel = self.kernel
        image = kernel.image
        return GuestFacts(
            os="linux",
            release=kernel.release,
            banner=kernel.banner.decode("utf-8", "backslashreplace"),
            architecture=image.architecture,
            paging=image.geometry.name,
            page_table_root=image.root,
            page_table_isolation=image.page_table_isolation,
            kernel_base=image.start,
            kernel_slide=kernel.slide,
            build_id=kernel.build_id,
            uptime_s=boot_time_s(kernel.space, kernel.symbols),
            evidence=kernel.evidence,
        )

    def processes(self) -> Listing[Process]:
        """This lists the processes of the kernel's task list.

        Raises:
            SymbolsError: the profile lacks what this needs.
            WalkFailed: the list cannot be walked at all.
        """
        return self._listing(self._tasks.processes)

    def process_ids(self) -> Listing[Process]:
        """This lists the processes that the initial pid namespace knows, by pid.

        Raises:
            SymbolsError: the profile lacks what this needs.
            WalkFailed: the table cannot be walked at all.
        """
        return self._listing(self._pid_table.processes)

    def threads(self) -> Listing[Thread]:
        """This lists the threads of all processes.

        Raises:
            SymbolsError: the profile lacks what this needs.
            WalkFailed: the list of processes cannot be walked at all.
        """
        return self._listing(self._tasks.threads)

    def modules(self) -> Listing[Module]:
        """This lists the loaded modules.

        Raises:
            SymbolsError: the profile lacks what this needs.
            WalkFailed: the list cannot be walked at all.
        """
        return self._listing(self._modules.modules)

    def mounts(self, process: Process | None = None) -> Listing[Mount]:
        """This lists the mounts that a process sees; None for those of all mount namespaces.

        Raises:
            SymbolsError: the profile lacks what this needs.
            WalkFailed: the process is gone, or they cannot be walked at all.
        """
        return self._one_or_all(process, self._mounts.of, self._mounts.of_all)

    def open_files(self, process: Process | None = None) -> Listing[OpenFile]:
        """This lists the open files of a process, or of all.

        Raises:
            SymbolsError: the profile lacks what this needs.
            WalkFailed: the process is gone, or the list of processes cannot be walked at all.
        """
        return self._listing(lambda: self._of(process, self._open_files.of))

    def sockets(self, process: Process | None = None) -> Listing[Socket]:
        """This lists the sockets that a process has open, or all there are: nobody's come last.

        Raises:
            SymbolsError: the profile lacks what this needs.
            WalkFailed: the process is gone, or the list of processes cannot be walked at all.
        """
        if process is None:
            return self._listing(self._every_socket)
        return self._listing(lambda: self._of(process, self._sockets.of))

    def mappings(self, process: Process | None = None) -> Listing[MemoryMapping]:
        """This lists the memory mappings of a process by address, or those of all processes.

        Raises:
            SymbolsError: the profile lacks what this needs.
            WalkFailed: the process is gone, or its memory or the list of processes cannot be walked
                at all.
        """
        return self._one_or_all(process, self._mappings.of, self._mappings.of_all)

    def command_lines(self, process: Process | None = None) -> Listing[CommandLine]:
        """This lists how a process was called, or how all were.

        Raises:
            SymbolsError: the profile lacks what this needs.
            WalkFailed: the process is gone, or the list of processes cannot be walked at all.
        """
        return self._listing(lambda: self._of(process, self._command_lines.of))

    def credentials(self, process: Process | None = None) -> Listing[Credentials]:
        """This lists who a process is and what it may do, or who all are.

        Raises:
            SymbolsError: the profile lacks what this needs.
            WalkFailed: the process is gone, or the list of processes cannot be walked at all.
        """
        return self._listing(lambda: self._credential_table.of(process))

    def namespaces(self, process: Process | None = None) -> Listing[Namespaces]:
        """This lists the namespaces of a process, or of all.

        Raises:
            SymbolsError: the profile lacks what this needs.
            WalkFailed: the process is gone, or the list of processes cannot be walked at all.
        """
        return self._listing(lambda: self._of(process, self._namespace_table.of))

    def cgroups(self, process: Process | None = None) -> Listing[Cgroup]:
        """This lists the cgroups of a process, or of all, and the containers that they tell.

        Raises:
            SymbolsError: the profile lacks what this needs.
            WalkFailed: the process is gone, or the list of processes cannot be walked at all.
        """
        return self._listing(lambda: self._of(process, self._cgroup_table.of))

    def bpf_programs(self) -> Listing[BpfProgram]:
        """This lists the eBPF programs that the kernel has loaded, by id.

        Raises:
            SymbolsError: the kernel has no eBPF, or the profile lacks what this needs.
            WalkFailed: they, or the list of processes, cannot be walked at all.
        """
        return self._listing(self._every_bpf_program)

    def per_cpu(self, name: str, cpu: int | None = None) -> Listing[PerCpuValue]:
        """This lists what each CPU's own copy of a variable of the kernel holds, or that of one CPU.

        Raises:
            SymbolsError: there is no such variable, or it is none that each CPU has.
            UsageError: there is no such CPU.
            WalkFailed: the CPUs cannot be told.
        """
        return self._listing(lambda: self._per_cpu.values(name, cpu))

    def per_cpu_address(self, name: str, cpu: int) -> Va:
        """This is where a CPU's own copy of a variable of the kernel lies.

        Raises:
            SymbolsError, UsageError, WalkFailed: as for :meth:`per_cpu`.
            MemoryFault: it cannot be told where.
        """
        self.require_current()
        return self._per_cpu.address(name, cpu)

    def stack(self, task: Process | Thread) -> Listing[StackFrame]:
        """This unwinds the kernel stack of a task; of one that runs only in a view of `paused()`.

        Raises:
            SymbolsError: the profile lacks what this needs.
            WalkFailed: the task is gone.
        """
        # Only there the registers are of the moment that the memory is of.
        vcpus = self.view.vcpus if self.view.provenance.taken is Taken.PAUSED else ()
        return self._listing(lambda: self._stacks.of(task, vcpus))

    def log(self) -> Listing[LogRecord]:
        """This lists the records of the kernel's log that are still held, the oldest first.

        Raises:
            SymbolsError: the profile lacks what this needs.
            WalkFailed: the log cannot be read at all.
        """
        return self._listing(self._log.records)

    def cached_files(self, under: str = "") -> Listing[CachedFile]:
        """This lists the files that have pages in memory, those that nobody sees any more too.

        Args:
            under: an absolute path: only the files below it; empty for all.

        Raises:
            SymbolsError: the profile lacks what this needs.
            WalkFailed: processes or file systems cannot be walked at all.
        """
        return self._listing(lambda: self._of_all(partial(self._cached_files.under, under)))

    def recover(self, file: CachedFile, write: Write) -> Listing[MissingRange]:
        """This gives what is in memory of a file's content, and lists what is missing of it.

        Args:
            file: a row of :meth:`cached_files`.
            write: called with an offset and the bytes there, in rising order. What it is not called
                with is missing, or zeros.

        Raises:
            SymbolsError: the profile lacks what this needs.
            WalkFailed: the file is gone, or is of a kind that is not read.
        """
        contents = FileContents(self.kernel.space, self._cached_files, self.memmap)
        return self._listing(lambda: contents.recover(file, write))

    def process_memory(self, process: Process) -> Listing[MemoryPiece]:
        """This lists the pieces of a process's memory, by address, and where their content is.

        Raises:
            SymbolsError: the profile lacks what this needs.
            WalkFailed: the process is gone, or has no memory of its own.
        """
        user = self.user_space(process)

        def walk() -> ListWalk[MemoryPiece]:
            found = self._mappings.of(process)
            pieces = self._process_memory.pieces(user, found.rows.values(), Effort())
            return ListWalk(dict(enumerate(pieces)), found.gaps, found.retries)

        return self._listing(walk)

    def process_image(self, process: Process) -> "ProcessImage":
        """This reads the memory and the registers of a process.

        Raises:
            WalkFailed: the process is gone, or has no memory of its own.
        """
        from qvmi.semantics.linux.process_image import ProcessImage  # noqa: PLC0415 - import time, for a rare need

        kernel, memory = self.kernel, self._process_memory
        return ProcessImage(kernel.space, kernel.symbols, memory=memory, process=process)

    def module_symbols(self) -> Listing[ModuleSymbol]:
        """This lists the symbols of all loaded modules, in the order of ``/proc/kallsyms``.

        Raises:
            SymbolsError: the profile lacks what this needs.
            WalkFailed: the list of modules cannot be walked at all.
        """
        return self._listing(self._module_symbols.symbols)

    def module_types(self) -> Listing[ModuleBtf]:
        """This lists the BTF of all loaded modules that have one.

        Raises:
            SymbolsError: the kernel has no BTF of its own, or the profile lacks what this needs.
            WalkFailed: the list of them cannot be walked at all.
        """
        symbols = self.kernel.symbols
        base = symbols.btf if isinstance(symbols, LiveSymbols) else None
        if base is None:
            raise LayoutNotFound("btf_module")
        return self._listing(ModuleTypes(self.kernel.space, symbols, base).types)

    def nearest(self, va: Va) -> NearestSymbol | None:
        """This is the symbol at or before an address, of the kernel or of a loaded module.

        Returns:
            None outside of both.

        Raises:
            SymbolsError: the profile lacks what this needs.
            WalkFailed: the list of modules cannot be walked at all.
        """
        self.require_current()
        image = self.kernel.image
        if image.start <= va <= image.end:  # `_end` is a symbol, too
            return self.kernel.symbols.nearest(va)
        return self._module_symbols.nearest(va)

    def user_space(self, process: Process) -> AddressSpace:
        """This is the address space of a process.

        Raises:
            WalkFailed: it has none (kernel threads, zombies), or it is gone.
            SymbolsError: the profile lacks what this needs.
        """
        require_task(process)
        return user_space(self.kernel.space, self.kernel.symbols, process.address)

    def current_thread(self, registers: x86_64.Registers | aarch64.Registers) -> Thread | None:
        """This is the thread that a vCPU runs, while it runs the kernel.

        Returns:
            None in user mode; on aarch64 also where the system registers are not known.

        Raises:
            SymbolsError: the profile lacks what this needs.
            MemoryFault: it cannot be read.
        """
        task = current_task(self.kernel.space, self.kernel.symbols, registers)
        return None if task is None else self._tasks.thread_at(task)

    def vmcoreinfo(self) -> bytes:
        """This is the kernel's own note for crash dumps, empty where it has none."""
        return vmcoreinfo_text(self.kernel.space, self.kernel.symbols)

    def page_owners(self) -> "PageOwners":
        """This tells whose pages of RAM are, as the guest is from now on for a moment.

        Raises:
            SymbolsError: the profile lacks what this needs.
        """
        from qvmi.semantics.linux.owners.page_owner import PageOwners  # noqa: PLC0415 - import time, for a rare need

        return PageOwners(self, self.kernel, self.memmap, self._paths)

    @cached_property
    def symbols(self) -> GuestSymbols:
        """These are the names and types of the kernel, its modules, and the files that were added."""
        return GuestSymbols(
            self.kernel,
            module_symbols=self.module_symbols,
            module_types=self.module_types,
            nearest=self.nearest,
            additions=self._additions,
        )

    @cached_property
    def _stacks(self) -> "TaskStacks":
        from qvmi.semantics.linux.stacks.stack import TaskStacks  # noqa: PLC0415 - import time, for a rare need

        tasks, modules, nearest = self._tasks, self._modules, self.nearest
        return TaskStacks(
            self.kernel.space, self.kernel.symbols, tasks=tasks, modules=modules, nearest=nearest
        )


_WALKERS = frozenset(
    name
    for room in LinuxGuest.__mro__
    for name, value in vars(room).items()
    if isinstance(value, cached_property)
)
