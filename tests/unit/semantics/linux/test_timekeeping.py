"""How long the guest has been up, from clocks written by hand."""

import struct

import pytest

from qvmi.semantics.linux.timekeeping import boot_time_s
from tests.synthetic.kernel_memory import LAYOUTS, KernelMemory

# include/linux/timekeeper_internal.h: nanoseconds are kept shifted; wall_to_monotonic is negative.
_TIMEKEEPER = {"tkr_mono": 0, "xtime_sec": 0x60, "wall_to_monotonic": 0x70, "offs_boot": 0x88}
_READOUT = {"xtime_nsec": 0x18, "shift": 0x14}
TYPES = {
    **LAYOUTS,
    "timekeeper": (0x120, _TIMEKEEPER),
    "tk_read_base": (0x38, _READOUT),
    "tk_data": (0x140, {"timekeeper": 0x10}),
}
NOW_S = 1_700_000_000
UP_S = 4321.75
SLEPT_NS = 2_000_000_000


def with_clock(symbol: str, offset: int, *, shift_bits: int = 8) -> KernelMemory:
    """A kernel that has been up so long, the last seconds of it asleep, whose clock has a fraction."""
    memory = KernelMemory(layouts=TYPES)
    clock = memory.allocate_bytes(0x200)
    keeper = clock + offset
    monotonic_s = UP_S - SLEPT_NS / 10**9
    fraction_ns = 250_000_000
    wall_ns = NOW_S * 10**9 + fraction_ns
    to_monotonic_ns = int(monotonic_s * 10**9) - wall_ns
    memory.u64(keeper + _TIMEKEEPER["xtime_sec"], NOW_S)
    memory.u64(keeper + _READOUT["xtime_nsec"], fraction_ns << 8)
    memory.u32(keeper + _READOUT["shift"], shift_bits)
    timespec = divmod(to_monotonic_ns, 10**9)
    memory.write(keeper + _TIMEKEEPER["wall_to_monotonic"], struct.pack("<qq", *timespec))
    memory.u64(keeper + _TIMEKEEPER["offs_boot"], SLEPT_NS)
    memory.symbols.addresses[symbol] = clock
    return memory


@pytest.mark.parametrize(("symbol", "offset"), [("timekeeper_data", 0x10), ("tk_core", 0x10)])
def test_the_time_since_boot_counts_sleep_too(symbol: str, offset: int) -> None:
    memory = with_clock(symbol, offset)
    assert boot_time_s(memory.space, memory.symbols) == pytest.approx(UP_S, abs=1e-6)


def test_before_6_13_the_clock_lies_behind_its_sequence_counter() -> None:
    memory = with_clock("tk_core", 8)
    without_tk_data = {name: layout for name, layout in TYPES.items() if name != "tk_data"}
    memory.symbols.layouts = without_tk_data
    assert boot_time_s(memory.space, memory.symbols) == pytest.approx(UP_S, abs=1e-6)


def test_a_kernel_without_a_clock_we_know_has_no_time() -> None:
    memory = KernelMemory()
    assert boot_time_s(memory.space, memory.symbols) is None


@pytest.mark.parametrize("missing", ["timekeeper", "tk_read_base", "tk_data"])
def test_without_the_layouts_there_is_no_time(missing: str) -> None:
    memory = with_clock("timekeeper_data", 0x10)
    memory.symbols.layouts = {name: one for name, one in TYPES.items() if name != missing}
    assert boot_time_s(memory.space, memory.symbols) is None


def test_a_clock_that_cannot_be_read_tells_no_time() -> None:
    memory = with_clock("timekeeper_data", 0x10)
    memory.symbols.addresses["timekeeper_data"] = 0x1000
    assert boot_time_s(memory.space, memory.symbols) is None


@pytest.mark.parametrize("shift_bits", [65, 0xFFFF_FFFF])
def test_a_shift_no_clock_can_have_tells_no_time(shift_bits: int) -> None:
    memory = with_clock("timekeeper_data", 0x10, shift_bits=shift_bits)
    assert boot_time_s(memory.space, memory.symbols) is None
