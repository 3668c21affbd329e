"""Guest memory as Volatility's layers: physical memory of ours, and page tables over it.

References: Volatility 3 framework/interfaces/layers.py, framework/layers/intel.py; Intel SDM volume 3, 4.5;
Linux arch/arm64/include/asm/pgtable.h (``pte_dirty``) and pgtable-prot.h.

A layer keeps what it has read and translated, so it is made anew for each question.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, ClassVar, Final

from volatility3.framework import exceptions, interfaces
from volatility3.framework.configuration import requirements
from volatility3.framework.layers import intel

from qvmi.addr import PAGE_SIZE, Pa, Va
from qvmi.arch import paging
from qvmi.arch.geometry import AARCH64_VA_BITS
from qvmi.errors import MemoryFault, TranslationFault
from qvmi.memory.physical import PhysicalMemory
from qvmi.semantics.volatility_bridge.interruption import Interruption

__all__ = ["LAYERS", "UPPER_ROOT", "GuardedReads", "GuestMemoryLayer", "ScanFailed"]

MAX_READ: Final = 256 << 20
"""Bytes of one read. Scanners take 16 MiB at once; a length that the guest made up takes all memory."""

_LA57_BITS: Final = 57

_PAGE: Final = 1 << 12
_NOWHERE: Final = -1
_MAX_PAGES: Final = 1 << 16
"""Translated pages that a layer keeps, of 256 MiB; a plugin may look at a terabyte."""
UPPER_ROOT: Final = "upper_root"
"""The option of a layer that says where the page tables of the kernel's half are, where that has its own."""

_MAX_WALKS: Final = 1024
"""Walks of one layer that are kept, as many as Volatility keeps of its own."""

_LAST_ADDRESS: Final = (1 << 64) - 1

# What an entry of aarch64's tells of writes.
_READ_ONLY: Final = 1 << 7
_DIRTY_BIT_MODIFIER: Final = 1 << 51
_SOFTWARE_DIRTY: Final = 1 << 55


class ScanFailed(BaseException):
    """A scan failed, which Volatility would take for one that found nothing.

    Attributes:
        cause: what it failed with.
    """

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class GuestMemoryLayer(interfaces.layers.DataLayerInterface):
    """This is the guest's physical memory.

    Args:
        context: of the question.
        config_path: where its configuration lies.
        name: of the layer.
        memory: what is read.
        interruption: asked at each read.
    """

    def __init__(
        self,
        context: interfaces.context.ContextInterface,
        config_path: str,
        name: str,
        *,
        memory: PhysicalMemory,
        interruption: Interruption,
    ) -> None:
        super().__init__(context, config_path, name)
        self.memory = memory
        self.check_interruption = interruption.check

    @property
    def minimum_address(self) -> int:
        """This is the first address."""
        return 0

    @property
    def maximum_address(self) -> int:
        """This is the last address of RAM."""
        return max(int(ram.end) for ram in self.memory.ranges) - 1

    def is_valid(self, offset: int, length: int = 1) -> bool:
        """This tells whether a range is RAM."""
        return any(ram.start <= offset and offset + length <= ram.end for ram in self.memory.ranges)

    def read(self, offset: int, length: int, pad: bool = False) -> bytes:
        """This reads RAM; where ``pad`` is set, what is no RAM is read as zeros."""
        self.check_interruption()
        if not 0 <= length <= MAX_READ:
            raise exceptions.InvalidAddressException(self.name, offset, f"{length} bytes at once")
        try:
            return self.memory.read(Pa(offset), length)
        except MemoryFault as fault:
            if pad:
                return b"".join(self._parts(offset, offset + length))
            raise exceptions.InvalidAddressException(self.name, offset, str(fault)) from fault

    def write(self, offset: int, data: bytes) -> None:
        """This refuses: nobody writes to the guest by way of a plugin."""
        raise exceptions.LayerException(self.name, f"{len(data)} bytes to write at {offset:#x}")

    def _parts(self, start: int, end: int) -> Iterator[bytes]:
        """This iterates the bytes of a range, with zeros for what cannot be read."""
        here = start
        for ram in self.memory.ranges:
            first, last = max(here, int(ram.start)), min(end, int(ram.end))
            if first < last:
                yield bytes(first - here)
                try:
                    yield self.memory.read(Pa(first), last - first)
                except MemoryFault:
                    yield bytes(last - first)
                here = last
        yield bytes(end - here)


class GuardedReads(interfaces.layers.DataLayerInterface):
    """This bounds the reads of a layer that translates, and lets them be interrupted."""

    machine_code: ClassVar = "intel64"
    """As renderers that disassemble call it."""

    def __init__(
        self, context: interfaces.context.ContextInterface, *arguments: Any, **named: Any
    ) -> None:
        super().__init__(context, *arguments, **named)
        # Volatility makes the layers of processes itself, with nothing of ours but the layer below.
        self._below: GuestMemoryLayer = context.layers[self._base_layer]
        self._check_interruption = self._below.check_interruption
        self._pages: dict[int, int] = {}

    def read(self, offset: int, length: int, pad: bool = False) -> bytes:
        """This reads what lies in one page by a translation that is kept, which takes a fifth of the time.

        Nearly all reads are of a field, and Volatility prepares each of them for any number of pages
        of any number of layers. What is more than one page is bounded, lest it take all memory.
        """
        within = offset & (_PAGE - 1)
        if 0 < length <= _PAGE - within:
            page = self._pages.get(offset - within)
            if page is None:
                page = self._keep_page(offset - within)
            if page != _NOWHERE:
                return self._below.read(page + within, length, pad)
        self._check_interruption()
        if not 0 <= length <= MAX_READ:
            raise exceptions.InvalidAddressException(self.name, offset, f"{length} bytes at once")
        data: bytes = super().read(offset, length, pad)
        return data

    def _keep_page(self, start: int) -> int:
        """This translates a page; one that cannot be is left to Volatility, whose errors tell more."""
        if len(self._pages) >= _MAX_PAGES:
            self._pages.clear()
        try:
            page, _, layer = self._translate(start)
        except exceptions.InvalidAddressException:
            page, layer = _NOWHERE, ""
        self._pages[start] = page if layer == self._base_layer else _NOWHERE
        return self._pages[start]

    def _translate(self, offset: int) -> tuple[int, int, str]:
        self._check_interruption()
        found: tuple[int, int, str] = super()._translate(offset)
        return found

    def _scan_chunk(self, *arguments: Any) -> list[Any]:
        try:
            found: list[Any] = super()._scan_chunk(*arguments)
        except Exception as error:
            raise ScanFailed(error) from error
        return found

    def _scan_iterator(self, *arguments: Any, **named: Any) -> Iterable[Any]:
        try:
            yield from super()._scan_iterator(*arguments, **named)
        except Exception as error:
            raise ScanFailed(error) from error


class _Guarded(GuardedReads, intel.LinuxIntel32e):
    """This is paging as Linux uses it."""


class _Intel4Level(_Guarded):
    """This is four-level paging of x86-64."""


class _Intel5Level(_Guarded):
    """This is five-level paging of x86-64 (LA57), which Volatility has not got."""

    _maxvirtaddr = _LA57_BITS
    _structure: ClassVar = [
        ("page map layer 5", 9, False),
        *intel.Intel32e._structure,  # noqa: SLF001 - the levels below are the same
    ]


class _AArch64(_Guarded):
    """This is aarch64's paging in pages of 4 KiB, by our own walk.

    Each half of the address space has a root of its own. Volatility knows one root and one width, to which
    it cuts addresses: the width here is a bit more than the page tables', and this bit tells the halves
    apart.

    Plugins ask for an x86 layer by its class and by the name of its architecture, which this therefore
    inherits, though most need no more of it than what addresses lead to.
    """

    machine_code: ClassVar = "arm64"
    geometry: ClassVar[paging.Geometry]
    """That of the upper half, which the lower one has too."""

    def __init__(
        self, context: interfaces.context.ContextInterface, *arguments: Any, **named: Any
    ) -> None:
        super().__init__(context, *arguments, **named)
        upper, lower = self.config[UPPER_ROOT], self._page_map_offset
        # The kernel's own layer has no programs' half.
        self._roots = (None if lower == upper else Pa(lower), Pa(upper))
        self._read_physical = context.layers[self._base_layer].memory.read
        self._walk = lru_cache(_MAX_WALKS)(self._walk_page)

    @classmethod
    def get_requirements(cls) -> list[Any]:
        """These are what a layer is made of; those of processes inherit it from the kernel's."""
        upper = requirements.IntRequirement(name=UPPER_ROOT, optional=False)
        return [*super().get_requirements(), upper]

    def _translate(self, offset: int) -> tuple[int, int, str]:
        self._check_interruption()
        _, page, size = self._walk(offset & self.address_mask & -PAGE_SIZE)
        return page + offset % PAGE_SIZE, size, self._base_layer

    def _translate_entry(self, page_address: int) -> tuple[int, int]:
        """This gives the last entry for a page, and the number of the highest bit that it does not map."""
        entry, _, size = self._walk(page_address & self.address_mask & -PAGE_SIZE)
        return entry, size.bit_length() - 2

    def _walk_page(self, page: int) -> tuple[int, Pa, int]:
        """This is the last entry for a page, where that lies, and how much the entry maps."""
        bits = self.geometry.va_bits
        upper = page >> bits
        root = self._roots[upper]
        if root is None:
            raise self._fault(page, bits, 0, "these page tables have no lower half")
        va = Va(page | -upper << bits & _LAST_ADDRESS)
        geometry = self.geometry if upper else self.geometry.of_user()
        try:
            found = paging.walk(self._read_physical, root, geometry, va)
        except TranslationFault as fault:
            shifts = (one.shift_bits for one in geometry.levels if one.name == fault.level)
            raise self._fault(page, next(shifts), fault.entry or 0, str(fault)) from fault
        return found.steps[-1].entry, found.pa, found.page_size

    def _fault(self, page: int, bits: int, entry: int, why: str) -> Exception:
        """This is the error for a page, with how many bits of an address cannot be valid beside it."""
        fault: Exception = exceptions.PagedInvalidAddressException(
            self.name, page, bits, entry, why
        )
        return fault

    @staticmethod
    def _page_is_dirty(entry: int) -> bool:
        """This tells whether the processor or the kernel noted that a page was written to."""
        by_processor = entry & (_DIRTY_BIT_MODIFIER | _READ_ONLY) == _DIRTY_BIT_MODIFIER
        return by_processor or bool(entry & _SOFTWARE_DIRTY)


def _aarch64_layers() -> Iterator[tuple[str, type[intel.Intel32e]]]:
    """This iterates a layer for each width of addresses, with and without FEAT_LPA2's entries."""
    for bits in AARCH64_VA_BITS:
        for lpa2 in (False, True):
            geometry = paging.aarch64_geometry(bits, paging.Half.UPPER, lpa2=lpa2)
            own = {"geometry": geometry, "_maxvirtaddr": bits + 1}
            yield geometry.name, type(f"_AArch64{bits}{'LPA2' * lpa2}", (_AArch64,), own)


LAYERS: Final[Mapping[str, type[intel.Intel32e]]] = {
    paging.X86_64_4_LEVEL.name: _Intel4Level,
    paging.X86_64_5_LEVEL.name: _Intel5Level,
    **dict(_aarch64_layers()),
}
"""The layer for each geometry of page tables."""
