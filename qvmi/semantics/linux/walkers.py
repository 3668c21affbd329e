"""What walks the structures of one kernel, each part made when it is first needed."""

from collections.abc import Callable, Collection, Iterable
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import msgspec

from qvmi.errors import StaleView, WalkFailed
from qvmi.semantics.guest_os import BpfProgram, Listing, Process, Socket
from qvmi.semantics.linux.fs.d_path import Paths
from qvmi.semantics.linux.fs.mount import Mounts
from qvmi.semantics.linux.fs.page_cache import CachedFiles
from qvmi.semantics.linux.image.vmcoreinfo import parse_vmcoreinfo
from qvmi.semantics.linux.kernel.discovery import Kernel, vmcoreinfo_text
from qvmi.semantics.linux.modules.module import Modules
from qvmi.semantics.linux.modules.module_symbols import ModuleSymbols
from qvmi.semantics.linux.net.sock import Sockets
from qvmi.semantics.linux.net.sock_common import Socks
from qvmi.semantics.linux.net.socket_tables import SocketTables
from qvmi.semantics.linux.pages.memmap import MemMap
from qvmi.semantics.linux.processes.cgroup import CgroupTable
from qvmi.semantics.linux.processes.command_line import CommandLines
from qvmi.semantics.linux.processes.cred import CredentialTable
from qvmi.semantics.linux.processes.fdtable import OpenFiles
from qvmi.semantics.linux.processes.nsproxy import NamespaceTable
from qvmi.semantics.linux.processes.process_memory import ProcessMemory
from qvmi.semantics.linux.processes.vma import Mappings
from qvmi.semantics.linux.structures.enum_names import EnumNames
from qvmi.semantics.linux.structures.list import ListWalk
from qvmi.semantics.linux.structures.percpu import PerCpu
from qvmi.semantics.linux.tasks.pid import PidTable
from qvmi.semantics.linux.tasks.task import Tasks
from qvmi.semantics.linux.tasks.task_moments import TaskMoments
from qvmi.semantics.rows.events import EventKind
from qvmi.view import View

if TYPE_CHECKING:
    from qvmi.semantics.linux.bpf import BpfPrograms
    from qvmi.semantics.linux.events.event_watch import EventWatch
    from qvmi.semantics.linux.printk import KernelLog

__all__ = ["Walkers"]

Row = TypeVar("Row")


class Walkers:
    """These are the walkers of one kernel, and they use each other.

    Args:
        view: how the guest is looked at.
        kernel: the kernel that runs there.
    """

    def __init__(self, view: View, kernel: Kernel) -> None:
        self.view = view
        self.kernel = kernel

    @cached_property
    def _tasks(self) -> Tasks:
        ram_size = sum(ram.size for ram in self.view.memory.ranges)
        return Tasks(self.kernel.space, self.kernel.symbols, ram_size=ram_size)

    @cached_property
    def _pid_table(self) -> PidTable:
        return PidTable(self.kernel.space, self.kernel.symbols, self._tasks)

    @cached_property
    def _modules(self) -> Modules:
        return Modules(self.kernel.space, self.kernel.symbols)

    @cached_property
    def _module_symbols(self) -> ModuleSymbols:
        return ModuleSymbols(self.kernel.space, self.kernel.symbols, self._modules)

    @cached_property
    def _paths(self) -> Paths:
        return Paths(self.kernel.space, self.kernel.symbols)

    @cached_property
    def _mounts(self) -> Mounts:
        kernel = self.kernel
        return Mounts(kernel.space, kernel.symbols, tasks=self._tasks, paths=self._paths)

    @cached_property
    def _open_files(self) -> OpenFiles:
        kernel = self.kernel
        return OpenFiles(kernel.space, kernel.symbols, tasks=self._tasks, paths=self._paths)

    @cached_property
    def _sockets(self) -> Sockets:
        kernel = self.kernel
        return Sockets(kernel.space, kernel.symbols, files=self._open_files, socks=self._socks)

    @cached_property
    def _socks(self) -> Socks:
        return Socks(self.kernel.space, self.kernel.symbols)

    @cached_property
    def _socket_tables(self) -> SocketTables:
        return SocketTables(self.kernel.space, self.kernel.symbols, socks=self._socks)

    @cached_property
    def _bpf(self) -> "BpfPrograms":
        from qvmi.semantics.linux.bpf import BpfPrograms  # noqa: PLC0415 - import time, for a rare need

        names = EnumNames(self.kernel.symbols)
        return BpfPrograms(self.kernel.space, self.kernel.symbols, type_names=names.of)

    @cached_property
    def _per_cpu(self) -> PerCpu:
        return PerCpu(self.kernel.space, self.kernel.symbols)

    @cached_property
    def _mappings(self) -> Mappings:
        kernel = self.kernel
        return Mappings(kernel.space, kernel.symbols, tasks=self._tasks, paths=self._paths)

    @cached_property
    def _command_lines(self) -> CommandLines:
        return CommandLines(self.kernel.space, self.kernel.symbols, tasks=self._tasks)

    @cached_property
    def _credential_table(self) -> CredentialTable:
        return CredentialTable(self.kernel.space, self.kernel.symbols, tasks=self._tasks)

    @cached_property
    def _namespace_table(self) -> NamespaceTable:
        return NamespaceTable(self.kernel.space, self.kernel.symbols, tasks=self._tasks)

    @cached_property
    def _cgroup_table(self) -> CgroupTable:
        return CgroupTable(self.kernel.space, self.kernel.symbols, tasks=self._tasks)

    @cached_property
    def _log(self) -> "KernelLog":
        from qvmi.semantics.linux.printk import KernelLog  # noqa: PLC0415 - import time, for a rare need

        return KernelLog(self.kernel.space, self.kernel.symbols)

    @cached_property
    def memmap(self) -> MemMap:
        """This tells of each frame of RAM what it is used for.

        Raises:
            SymbolsError: the profile lacks what this needs.
        """
        note = parse_vmcoreinfo(vmcoreinfo_text(self.kernel.space, self.kernel.symbols))
        return MemMap(self.kernel.space, self.kernel.symbols, note)

    @cached_property
    def _cached_files(self) -> CachedFiles:
        kernel, memmap = self.kernel, self.memmap
        return CachedFiles(
            kernel.space, kernel.symbols, memmap=memmap, paths=self._paths, mounts=self._mounts
        )

    @cached_property
    def _process_memory(self) -> ProcessMemory:
        kernel, files = self.kernel, self._cached_files
        return ProcessMemory(kernel.space, kernel.symbols, files=files, memmap=self.memmap)

    @property
    def task_moments(self) -> TaskMoments:
        """This reads of one task what has become of it.

        Raises:
            SymbolsError: the profile lacks what this needs.
        """
        return TaskMoments(self.kernel.space, self.kernel.symbols, self._tasks)

    def events(self, kinds: Collection[EventKind]) -> "EventWatch":
        """This watches what happens from its beginning on; whoever has it looks.

        Raises:
            SymbolsError: the profile lacks what this needs.
        """
        from qvmi.semantics.linux.event_walkers import EventWalkers  # noqa: PLC0415 - import time, for a rare need

        walkers = EventWalkers(
            kernel=self.kernel,
            tasks=self._tasks,
            moments=lambda: self.task_moments,
            modules=lambda: self._modules,
            sockets=lambda: self._socket_tables,
            mounts=lambda: self._mounts,
            paths=lambda: self._paths,
        )
        return walkers.watch(self.view, kinds, self.require_current)

    def _of(
        self, process: Process | None, walk: Callable[[Iterable[Process]], ListWalk[Row]]
    ) -> ListWalk[Row]:
        """This does a walk over one process, which must still be there, or over all."""
        if process is None:
            return self._of_all(walk)
        try:
            self._tasks.require_there(process)
        except WalkFailed:  # off the list of tasks it may be hidden, and have a pid all the same
            if not self._has_pid(process):
                raise
        return walk((process,))

    def _has_pid(self, process: Process) -> bool:
        """This tells whether the table of pids leads to a process."""
        its = process.address, process.pid, process.start_time_s
        known = self._pid_table.processes().rows.values()
        return its in ((one.address, one.pid, one.start_time_s) for one in known)

    def _of_all(self, walk: Callable[[Iterable[Process]], ListWalk[Row]]) -> ListWalk[Row]:
        """This does a walk over all processes; what could not be seen of them counts as its own."""
        processes = self._tasks.processes()
        found = walk(processes.rows.values())
        return ListWalk(
            found.rows, [*processes.gaps, *found.gaps], processes.retries + found.retries
        )

    def _one_or_all(
        self,
        process: Process | None,
        of: Callable[[Process], ListWalk[Row]],
        of_all: Callable[[Iterable[Process]], ListWalk[Row]],
    ) -> Listing[Row]:
        """This answers of one process, or of all, where both are walked in ways of their own."""
        if process is None:
            return self._listing(lambda: self._of_all(of_all))
        return self._listing(lambda: of(process))

    def _every_socket(self) -> ListWalk[Socket]:
        tabled = self._socket_tables.walk()
        return self._socket_tables.with_unheld(self._of_all(self._sockets.of), tabled)

    def _every_bpf_program(self) -> ListWalk[BpfProgram]:
        sockets, files = self._every_socket(), self._of_all(self._open_files.of)
        found = self._bpf.programs(files.rows.values(), sockets.rows.values())
        gaps = [*dict.fromkeys((*sockets.gaps, *files.gaps)), *found.gaps]
        return ListWalk(found.rows, gaps, sockets.retries + files.retries + found.retries)

    def _listing(self, walk: Callable[[], ListWalk[Row]]) -> Listing[Row]:
        self.require_current()
        at = self.view.moment()
        found = walk()
        self.require_current()  # a reset in mid-walk would leave a mixture
        label = self.view.provenance
        pause_s = label.pause_s + self.view.paused_s()
        provenance = msgspec.structs.replace(label, at=at, retries=found.retries, pause_s=pause_s)
        return Listing(tuple(found.rows.values()), tuple(found.gaps), provenance)

    def require_current(self) -> None:
        """This raises StaleView where another kernel runs now, as after a reset or kexec.

        Where the machine's end has not been told yet, the memory that is gone raises MemoryFault.
        """
        self.view.require_current()
        if not self.kernel.still_there():
            raise StaleView("another kernel runs here now than the one recognised")
