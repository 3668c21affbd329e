"""The kernel's clocks: how long the guest has been up.

References: Linux include/linux/timekeeper_internal.h and kernel/time/timekeeping.c
(``timekeeping_get_ns``, ``tk_update_ktime_data``; ``tk_core`` became ``timekeeper_data[]``).
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
_MAX_SHIFT_BITS: Final = 64
_U32: Final = Struct("<I")
_U64: Final = Struct("<Q")
_TIMESPEC: Final = Struct("<qq")
_NANOSECONDS: Final = 1_000_000_000


def boot_time_s(space: AddressSpace, symbols: Symbols) -> float | None:
    """This is CLOCK_BOOTTIME at the last tick, in seconds; None where it cannot be read."""
    try:
        timekeeper = _timekeeper(symbols)
        if timekeeper is None:
            return None

        def member(layout: Struct, *path: tuple[str, str]) -> tuple[int, ...]:
            offset = sum(field_offset(symbols, type_name, name) for type_name, name in path)
            return layout.unpack(space.read(Va(timekeeper + offset), layout.size))

        readout = ("timekeeper", "tkr_mono")
        (seconds,) = member(_U64, ("timekeeper", "xtime_sec"))
        (shifted_ns,) = member(_U64, readout, ("tk_read_base", "xtime_nsec"))
        (shift_bits,) = member(_U32, readout, ("tk_read_base", "shift"))
        to_monotonic_s, to_monotonic_ns = member(_TIMESPEC, ("timekeeper", "wall_to_monotonic"))
        (to_boot_ns,) = member(_U64, ("timekeeper", "offs_boot"))
    except (SymbolsError, MemoryFault):
        return None
    if shift_bits > _MAX_SHIFT_BITS:
        return None
    nanoseconds = (shifted_ns >> shift_bits) + to_monotonic_ns + to_boot_ns
    return seconds + to_monotonic_s + nanoseconds / _NANOSECONDS


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
