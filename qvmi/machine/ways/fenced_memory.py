"""Guest memory behind a fence: each read is held against the session's policy."""

from collections.abc import Callable, Iterator, Sequence

from qvmi.addr import Pa, PaRange
from qvmi.memory.physical import PhysicalMemory, Window
from qvmi.policy import AddressRange, Grant, Space

__all__ = ["FencedMemory"]


class FencedMemory(PhysicalMemory):
    """This reads guest memory where, as often and as much as the policy lets it.

    It has no windows: who holds a mapping reads what it likes.

    Args:
        memory: what is read.
        require: raises PolicyDenied where a read is not allowed: grant, action, place.
    """

    def __init__(
        self, memory: PhysicalMemory, require: Callable[[Grant, str, AddressRange], None]
    ) -> None:
        self._memory = memory
        self._require = require

    @property
    def description(self) -> str:
        """This is how the memory behind the fence is read."""
        return f"{self._memory.description}, within the policy"

    @property
    def ranges(self) -> Sequence[PaRange]:
        """These are all RAM ranges: where memory is, is no secret."""
        return self._memory.ranges

    @property
    def windows(self) -> Sequence[Window]:
        """There are none."""
        return ()

    def read(self, pa: Pa, size: int) -> bytes:
        """This reads exactly ``size`` bytes at ``pa``.

        Raises:
            PolicyDenied: not there, not so often, or not so much.
            MemoryFault: as the memory behind the fence.
        """
        if size > 0 and pa >= 0:  # else the memory itself says what is wrong with it
            place = AddressRange(Space.PHYSICAL, pa, size)
            self._require(
                Grant.READ_MEMORY, f"read {size} bytes at physical address {pa:#x}", place
            )
        return self._memory.read(pa, size)

    def data_ranges(self) -> Iterator[PaRange]:
        """These are the ranges that may hold bytes other than zero."""
        return self._memory.data_ranges()

    def close(self) -> None:
        """This does nothing: the memory is whoever's it was."""
