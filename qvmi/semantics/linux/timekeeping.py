"""The kernel's clocks: how long the guest has been up.

References: Linux include/linux/timekeeper_internal.h and kernel/time/timekeeping.c
(``ktime_get_boottime``; ``tk_core`` became ``timekeeper_data[]`` in 6.13).
"""

from struct import Struct
from typing import Final

from qvmi.addr import Va
from qvmi.errors import MemoryFault, SymbolsError
from qvmi.memory.address_space import AddressSpace
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["boot_time_s"]

_SEQCOUNT_SIZE: Final = 8
"""``tk_core`` is a sequence counter and, aligned to eight bytes, the timekeeper."""
_U64: Final = Struct("<Q")
_TIMESPEC: Final = Struct("<qq")
_NANOSECONDS: Final = 1_000_000_000


def boot_time_s(space: AddressSpace, symbols: Symbols) -> float | None:
    """This is CLOCK_BOOTTIME at the last tick, in seconds; None where it cannot be read."""
    try:
        timekeeper = _timekeeper(symbols)
        if timekeeper is None:
            return None

        def member(name: str) -> Va:
            return Va(timekeeper + field_offset(symbols, "timekeeper", name))

        seconds = _U64.unpack(space.read(member("xtime_sec"), 8))[0]
        to_monotonic = _TIMESPEC.unpack(space.read(member("wall_to_monotonic"), _TIMESPEC.size))
        to_boot_ns = _U64.unpack(space.read(member("offs_boot"), 8))[0]
    except (SymbolsError, MemoryFault):
        return None
    uptime: float = seconds + to_monotonic[0] + (to_monotonic[1] + to_boot_ns) / _NANOSECONDS
    return uptime


def _timekeeper(symbols: Symbols) -> Va | None:
    """This is the address of the kernel's own ``struct timekeeper``."""
    data = symbols.find("timekeeper_data")
    if data is not None:
        return Va(data + field_offset(symbols, "tk_data", "timekeeper"))
    core = symbols.find("tk_core")
    if core is None:
        return None
    named = symbols.find_field("tk_data", ("timekeeper",))
    return Va(core + (named.offset if named else _SEQCOUNT_SIZE))
