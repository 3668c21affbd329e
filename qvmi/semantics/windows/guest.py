"""Windows as the selected interface: answered by Volatility's plugins, with symbols that the user gives."""

from collections.abc import Callable, Iterable
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Final, Never, TypeVar

from qvmi.addr import Va
from qvmi.errors import NotAnswered, StaleView, UsageError
from qvmi.semantics.guest_os import Gap, GuestFacts, Listing, Module, Process
from qvmi.semantics.volatility_bridge.table import VolatilityRow, VolatilityTable
from qvmi.semantics.windows.discovery import WindowsKernel
from qvmi.view import View

__all__ = ["NO_ID", "WindowsGuest"]

Row = TypeVar("Row")

NO_ID: Final = -1
"""A user or group id of a process: Windows has none that is a number."""
_SYSTEM: Final = 4
"""The process of the kernel itself, whose threads are the kernel's."""
_EPOCH_1970_S: Final = 11_644_473_600
"""Seconds from 1601, where Windows' clock begins, to 1970."""


def _not_answered(question: str, plugin: str = "") -> Callable[..., Never]:
    """This makes a method for a question that is not answered, and says which plugin may do."""
    way_out = f"volatility({plugin!r}) may" if plugin else "no plugin does either"

    def ask(_guest: "WindowsGuest", *_: object) -> Never:
        raise NotAnswered(question, "Windows", way_out)

    return ask


class WindowsGuest:
    """This answers for one Windows. It implements what it can of :class:`qvmi.GuestOS`.

    Args:
        view: how the guest is looked at; its label goes onto every listing.
        kernel: that runs there.
        isf: a Volatility 3 symbol file of exactly this kernel; None for none.

    Every question raises StaleView once another kernel runs there, and UsageError without a symbol file.
    """

    def __init__(self, view: View, kernel: WindowsKernel, isf: Path | None = None) -> None:
        self.view = view
        self.kernel = kernel
        self.isf = isf

    def facts(self) -> GuestFacts:
        """This tells which system it is, and the evidence; no symbols are needed for it."""
        self._require_current()
        kernel, shared = self.kernel, self.kernel.shared_data()
        version = "" if shared is None else shared.version
        return GuestFacts(
            os="windows",
            release=version,
            banner=f"Windows {version}, {kernel.pdb}",
            architecture="x86_64",
            paging=kernel.space.geometry.name,
            page_table_root=kernel.space.root,
            page_table_isolation=False,
            kernel_base=kernel.image.base,
            kernel_slide=0,
            build_id=f"{kernel.pdb.guid}-{kernel.pdb.age}",
            uptime_s=None if shared is None else shared.uptime_s,
            evidence=kernel.evidence,
        )

    def volatility(self, plugin: str, /, **options: object) -> VolatilityTable:
        """This asks a plugin of Volatility 3's for Windows.

        Args:
            plugin: its name, such as ``windows.pslist.PsList``, or a part of it that no other has.
            options: by the names that the plugin itself gives them.

        Raises:
            UsageError: Volatility is not installed, no symbol file was given, or there is no such
                plugin or option.
            SymbolsError: the symbol file is none, or that of another kernel.
            PluginFailed: it failed before its first row; what fails behind that is a gap.
        """
        self._require_current()
        if self.isf is None:
            raise UsageError(
                f"a symbol file of {self.kernel.pdb} is needed; Volatility's pdbconv.py makes it from"
                f" that PDB, and nothing is fetched here"
            )
        try:
            bridge = import_module("qvmi.semantics.volatility_bridge.windows")
        except ImportError as error:
            raise UsageError(
                "Volatility 3 is not installed: pip install 'qvmi[volatility]'"
            ) from error
        table: VolatilityTable = bridge.windows_answer(
            self.view, self.kernel, self.isf, plugin, options
        )
        self._require_current()
        return table

    def processes(self) -> Listing[Process]:
        """This lists the processes of ``PsActiveProcessHead``.

        Windows has no numbers for users and groups, and no letters for states: ids are
        :data:`NO_ID`, and the state is ``Z`` of a process that has ended, else empty.
        """
        shared = self.kernel.shared_data()
        boot_s = 0.0 if shared is None else shared.time_s - _EPOCH_1970_S - shared.uptime_s
        return _listing(self.volatility("windows.pslist.PsList"), lambda row: _process(row, boot_s))

    def modules(self) -> Listing[Module]:
        """This lists the loaded drivers and libraries of the kernel, by ``PsLoadedModuleList``."""
        return _listing(self.volatility("windows.modules.Modules"), _module)

    process_ids = _not_answered("process_ids", "windows.psscan.PsScan")
    threads = _not_answered("threads", "windows.threads.Threads")
    task_sightings = _not_answered("task_sightings", "windows.malware.psxview.PsXView")
    mounts = _not_answered("mounts")
    open_files = _not_answered("open_files", "windows.handles.Handles")
    sockets = _not_answered("sockets", "windows.netscan.NetScan")
    tabled_sockets = _not_answered("tabled_sockets")
    mappings = _not_answered("mappings", "windows.vadinfo.VadInfo")
    memory_content = _not_answered("memory_content", "windows.memmap.Memmap")
    command_lines = _not_answered("command_lines", "windows.cmdline.CmdLine")
    programs = _not_answered("programs")
    environment = _not_answered("environment", "windows.envars.Envars")
    credentials = _not_answered("credentials", "windows.getsids.GetSIDs")
    namespaces = _not_answered("namespaces")
    cgroups = _not_answered("cgroups")
    cgroup_hierarchies = _not_answered("cgroup_hierarchies")
    bpf_programs = _not_answered("bpf_programs")
    cached_files = _not_answered("cached_files", "windows.filescan.FileScan")
    file_content = _not_answered("file_content")
    stack = _not_answered("stack")
    log = _not_answered("log")
    code_changes = _not_answered("code_changes")
    module_sightings = _not_answered("module_sightings", "windows.modscan.ModScan")
    interrupts = _not_answered("interrupts")
    hooks = _not_answered("hooks", "windows.callbacks.Callbacks")
    settings = _not_answered("settings")
    system_calls = _not_answered("system_calls", "windows.ssdt.SSDT")

    def _require_current(self) -> None:
        self.view.require_current()
        if not self.kernel.still_there():
            raise StaleView("another kernel runs here now than the one recognised")


def _listing(table: VolatilityTable, make: Callable[[VolatilityRow], Row | None]) -> Listing[Row]:
    """This makes rows of a plugin's; one that has not all that a row needs is a gap."""
    made = [(row, make(row)) for row in table.items]
    gaps: Iterable[Gap] = (
        Gap(table.plugin, None, f"a row that is not whole: {row.values}")
        for row, found in made
        if found is None
    )
    items = tuple(found for _, found in made if found is not None)
    return Listing(items, (*table.gaps, *gaps), table.provenance)


def _process(row: VolatilityRow, boot_s: float) -> Process | None:
    cells = [row["PID"], row["PPID"], row["Offset(V)"]]
    pid, ppid, address = (cell if isinstance(cell, int) else None for cell in cells)
    name, began = row["ImageFileName"], row["CreateTime"]
    if pid is None or ppid is None or address is None or not isinstance(name, str):
        return None
    start_s = began.timestamp() - boot_s if isinstance(began, datetime) else 0.0
    state = "Z" if isinstance(row["ExitTime"], datetime) else ""
    is_system = pid == _SYSTEM
    return Process(pid, pid, ppid, NO_ID, NO_ID, state, name, Va(address), is_system, start_s)


def _module(row: VolatilityRow) -> Module | None:
    cells = [row["Base"], row["Size"], row["Offset"]]
    base, size, address = (cell if isinstance(cell, int) else None for cell in cells)
    name = row["Name"]
    if base is None or size is None or address is None or not isinstance(name, str):
        return None
    return Module(name, Va(base), size, "live", Va(address))
