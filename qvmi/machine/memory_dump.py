"""A guest's memory in a file, seen through the same interface as a live guest."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from qvmi.addr import PaRange
from qvmi.errors import MemoryFault, QvmiError, UnknownGuest, UsageError
from qvmi.machine.attach import choices_of
from qvmi.memory.address_space import AddressSpace
from qvmi.memory.dump_source import DumpWay, dump_ways
from qvmi.memory.input_file import InputFile
from qvmi.memory.physical import PhysicalMemory
from qvmi.semantics.drgn_bridge import program_of
from qvmi.semantics.guest_os import Process
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.linux.kernel.dump_discovery import ram_that_the_kernel_maps
from qvmi.semantics.linux.kernel.guest_symbols import GuestSymbols
from qvmi.semantics.selection import Choices, remember, select_in_dump
from qvmi.view import Provenance, Taken, View

if TYPE_CHECKING:
    from qvmi.machine.scanning.scan import Scan, ScanArea, ScanProgress
    from qvmi.machine.scanning.scan_rules import ScanRules
    from qvmi.semantics.drgn_bridge.program import Program
    from qvmi.semantics.volatility_bridge.bridge import VolatilityBridge
    from qvmi.semantics.volatility_bridge.table import VolatilityTable

__all__ = ["DumpFacts", "MemoryDump", "open_dump"]

Found = TypeVar("Found")

_logger = logging.getLogger(__name__)

_UNMAPPED_END: Final = 64 << 20
"""Bytes at the end of a machine's RAM that the firmware may keep for itself; it keeps some 100 KiB."""
_NOT_PLACED: Final = (
    "a kernel was found, but not how the file's bytes lie in the machine: say how much RAM it had"
    " below 4 GiB if it was an x86 machine (--raw-ram SIZE)"
)


@dataclass(frozen=True, slots=True)
class DumpFacts:
    """This is what is known of a dump, whatever is in it.

    Args:
        path: of the file.
        form: what kind of file it is, for people.
        size: of the file in bytes.
        ram_size: bytes of guest memory in it.
        ranges: their addresses.
        at: when the file was last written to, seconds since the Unix epoch.
    """

    path: str
    form: str
    size: int
    ram_size: int
    ranges: tuple[PaRange, ...]
    at: float


class MemoryDump:
    """This is an opened dump; :func:`open_dump` makes it. It is for one thread at a time.

    Args:
        file: the opened file, which stays its opener's.
        memory: in the file, which this owns from now on.
        form: what kind of file it is.
        guest: what ran in it, or why that is not known.
    """

    def __init__(
        self, file: InputFile, memory: PhysicalMemory, form: str, guest: LinuxGuest | QvmiError
    ) -> None:
        self._file = file
        self._form = form
        self._guest = guest
        self.memory = memory

    def remember(self, choices: Choices) -> None:
        """This keeps what was learned of the kernel for the next look."""
        if isinstance(self._guest, LinuxGuest):
            try:
                remember(self._guest, choices)
            except UsageError as error:
                _logger.warning("the profile of this kernel is not kept: %s", error)

    @property
    def path(self) -> Path:
        """This is where the file is."""
        return self._file.path

    @property
    def view(self) -> View:
        """This is the memory with its label; a dump has no registers."""
        return _view(self._file, self.memory)

    @property
    def guest(self) -> LinuxGuest:
        """This is the operating system that ran when the dump was taken.

        Raises:
            UnknownGuest: none was recognised.
        """
        if isinstance(self._guest, LinuxGuest):
            return self._guest
        raise self._guest

    @property
    def symbols(self) -> GuestSymbols:
        """These are the names and types of the guest; raises as :attr:`guest` does."""
        return self.guest.symbols

    @property
    def kernel_space(self) -> AddressSpace:
        """This is the kernel's address space; raises as :attr:`guest` does."""
        return self.guest.kernel.space

    def user_space(self, process: Process) -> AddressSpace:
        """This is the address space of a process of the guest.

        Raises:
            WalkFailed: it has none, as kernel threads and zombies.
            UnknownGuest: as :attr:`guest`.
        """
        return self.guest.user_space(process)

    def drgn(self) -> "Program":
        """This is a drgn program on the guest, with its own types and symbols.

        Raises:
            UsageError: drgn is not installed.
            SymbolsError, GuestError: the kernel lacks what drgn needs.
            UnknownGuest: as :attr:`guest`.
        """
        return program_of(self.guest)

    def volatility(self, plugin: str, /, **options: object) -> "VolatilityTable":
        """This asks a plugin of Volatility 3's, or of the user's own, as `Machine.volatility` does.

        Raises:
            UsageError: Volatility is not installed, or there is no such plugin or option.
            PluginFailed: it failed before its first row; what fails behind that is a gap.
            UnknownGuest, SymbolsError: as :attr:`guest`, and its tables.
        """
        return self._volatility.answer(self.guest, plugin, options)

    def scan(
        self,
        rules: "ScanRules | str | Path",
        *,
        area: "ScanArea | None" = None,
        pid: int | None = None,
        hits_per_rule: int | None = None,
        on_progress: "Callable[[ScanProgress], None] | None" = None,
    ) -> "Scan":
        """This is a scan by YARA rules, iterated on an event loop, as `Machine.scan` tells."""
        from qvmi.machine.scanning.scan import Scan  # noqa: PLC0415 - as Machine does
        from qvmi.machine.scanning.scan_target import DumpTarget  # noqa: PLC0415 - as Machine does

        target = DumpTarget(self)
        return Scan(
            target, rules, area=area, pid=pid, hits_per_rule=hits_per_rule, on_progress=on_progress
        )

    @cached_property
    def _volatility(self) -> "VolatilityBridge":
        from qvmi.semantics.volatility_bridge.bridge import (  # noqa: PLC0415 - as Machine does
            VolatilityBridge,
        )

        return VolatilityBridge()

    @property
    def facts(self) -> DumpFacts:
        """This is what is known of the dump itself."""
        ranges = tuple(self.memory.ranges)
        size = sum(ram.size for ram in ranges)
        file = self._file
        return DumpFacts(str(file.path), self._form, file.size, size, ranges, file.modified_at)

    def capture(self, walk: Callable[[LinuxGuest], Found]) -> Found:
        """This does a walk, as :meth:`Machine.capture` does on a guest that has to be stopped for it."""
        return walk(self.guest)

    def close(self) -> None:
        """This releases the memory."""
        self.memory.close()


@contextmanager
def open_dump(
    path: str | Path,
    *,
    isf: Path | None = None,
    cache: Path | None = None,
    use_cache: bool = True,
    raw: bool = False,
    below_4g: int | None = None,
) -> Iterator[MemoryDump]:
    """This opens a dump for as long as the block lasts: an ELF core, LiME, AVML, or raw RAM.

    The file is never written to, and never read whole.

    Args:
        path: of the file.
        isf: a Volatility 3 symbol file of the guest's kernel, for kernels without BTF.
        cache: folder of the profiles; the user's cache folder by default.
        use_cache: whether profiles are read and written at all.
        raw: the file is raw RAM, even if it begins like another kind of dump: what lies at address
            0 the guest decides.
        below_4g: bytes of raw RAM that the machine has below 4 GiB; None finds out, by what the
            kernel's page tables map.

    Raises:
        NotADump: the file is no dump, or damaged.
        UsageError: a library that is needed for it is not installed.

    A guest that is not recognised is no error here: :attr:`MemoryDump.guest` raises then.
    """
    if below_4g is not None and below_4g <= 0:
        raise UsageError(f"{below_4g} bytes below 4 GiB: a machine has some")
    choices = choices_of(isf, cache, use_cache=use_cache)
    file = InputFile(Path(path))
    try:
        dump = _opened(file, list(dump_ways(file, raw=raw, below_4g=below_4g)), choices)
        try:
            yield dump
        finally:
            dump.remember(choices)
            dump.close()
    finally:
        file.close()


def _opened(file: InputFile, ways: Sequence[DumpWay], choices: Choices) -> MemoryDump:
    """This opens the memory in the way in which the kernel in it makes sense, else in the first."""
    problems: list[QvmiError] = []
    for way in ways:
        memory = _memory(file, way)
        try:
            guest = select_in_dump(_view(file, memory), choices, way.vmcoreinfo)
            if way.certain or _fits(guest):
                return MemoryDump(file, memory, way.form, guest)
            problems.insert(0, UnknownGuest(_NOT_PLACED, _placing(guest, way)))
        except QvmiError as problem:
            problems.append(problem)
        except BaseException:
            memory.close()
            raise
        memory.close()
    return MemoryDump(file, _memory(file, ways[0]), ways[0].form, problems[0])


def _memory(file: InputFile, way: DumpWay) -> PhysicalMemory:
    try:
        return way.open()
    except MemoryFault as fault:
        raise file.refusal(f"cannot be opened: {fault}") from fault


def _view(file: InputFile, memory: PhysicalMemory) -> View:
    return View((), memory, Provenance(Taken.DUMP, file.modified_at))


def _fits(guest: LinuxGuest) -> bool:
    """This tells whether what the kernel takes for RAM is what the file is taken for.

    A byte that lies elsewhere than is thought would be outside of it, or missing at its end.
    """
    mapped = ram_that_the_kernel_maps(guest.kernel)
    ranges = guest.view.memory.ranges
    if not mapped:
        return False
    within = all(any(_holds(ram, one) for ram in ranges) for one in mapped)
    return within and ranges[-1].end - mapped[-1].end <= _UNMAPPED_END


def _holds(ram: PaRange, one: PaRange) -> bool:
    return ram.start <= one.start and one.end <= ram.end


def _placing(guest: LinuxGuest, way: DumpWay) -> list[str]:
    mapped = ram_that_the_kernel_maps(guest.kernel)
    known = ", ".join(f"{ram.start:#x} to {ram.end:#x}" for ram in mapped)
    return [
        f"taken for {way.form}: the kernel {guest.kernel.release} maps RAM at {known or 'none'}"
    ]
