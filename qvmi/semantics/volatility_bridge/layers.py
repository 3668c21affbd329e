"""Guest memory as Volatility's layers: physical memory of ours, and page tables over it.

References: Volatility 3 framework/interfaces/layers.py, framework/layers/intel.py; Intel SDM volume 3, 4.5.

A layer keeps what it has read and translated, so it is made anew for each question.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Final

from volatility3.framework import exceptions, interfaces
from volatility3.framework.layers import intel

from qvmi.addr import Pa
from qvmi.arch import paging
from qvmi.errors import MemoryFault
from qvmi.memory.physical import PhysicalMemory
from qvmi.semantics.volatility_bridge.interruption import Interruption

__all__ = ["LAYERS", "GuardedReads", "GuestMemoryLayer", "ScanFailed"]

MAX_READ: Final = 256 << 20
"""Bytes of one read. Scanners take 16 MiB at once; a length that the guest made up takes all memory."""

_LA57_BITS: Final = 57


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
        self._memory = memory
        self.check_interruption = interruption.check

    @property
    def minimum_address(self) -> int:
        """This is the first address."""
        return 0

    @property
    def maximum_address(self) -> int:
        """This is the last address of RAM."""
        return max(int(ram.end) for ram in self._memory.ranges) - 1

    def is_valid(self, offset: int, length: int = 1) -> bool:
        """This tells whether a range is RAM."""
        return any(
            ram.start <= offset and offset + length <= ram.end for ram in self._memory.ranges
        )

    def read(self, offset: int, length: int, pad: bool = False) -> bytes:
        """This reads RAM; where ``pad`` is set, what is no RAM is read as zeros."""
        self.check_interruption()
        if not 0 <= length <= MAX_READ:
            raise exceptions.InvalidAddressException(self.name, offset, f"{length} bytes at once")
        try:
            return self._memory.read(Pa(offset), length)
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
        for ram in self._memory.ranges:
            first, last = max(here, int(ram.start)), min(end, int(ram.end))
            if first < last:
                yield bytes(first - here)
                try:
                    yield self._memory.read(Pa(first), last - first)
                except MemoryFault:
                    yield bytes(last - first)
                here = last
        yield bytes(end - here)


class GuardedReads(interfaces.layers.DataLayerInterface):
    """This bounds the reads of a layer that translates, and lets them be interrupted."""

    def __init__(
        self, context: interfaces.context.ContextInterface, *arguments: Any, **named: Any
    ) -> None:
        super().__init__(context, *arguments, **named)
        # Volatility makes the layers of processes itself, with nothing of ours but the layer below.
        self._check_interruption = context.layers[self._base_layer].check_interruption

    def read(self, offset: int, length: int, pad: bool = False) -> bytes:
        """This reads, but not so much that it would take all memory."""
        self._check_interruption()
        if not 0 <= length <= MAX_READ:
            raise exceptions.InvalidAddressException(self.name, offset, f"{length} bytes at once")
        data: bytes = super().read(offset, length, pad)
        return data

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


LAYERS: Final[Mapping[str, type[intel.Intel32e]]] = {
    paging.X86_64_4_LEVEL.name: _Intel4Level,
    paging.X86_64_5_LEVEL.name: _Intel5Level,
}
"""The layer for each geometry of page tables. One for AArch64 has its place here; Volatility has none."""
