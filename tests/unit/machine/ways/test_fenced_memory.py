"""The fence lets through the very bytes of what is granted, and asks for each read."""

import pytest

from qvmi.addr import Pa
from qvmi.errors import MemoryFault, PolicyDenied
from qvmi.machine.ways.fenced_memory import FencedMemory
from qvmi.policy import READ_ONLY, AddressRange, Grant, Limits, PolicyGate, Space
from qvmi.testing import FakeMemory

BYTES = bytes(range(256)) * 32


def fenced(limits: Limits) -> FencedMemory:
    gate = PolicyGate("", READ_ONLY.within(Grant.READ_MEMORY, limits))

    def require(grant: Grant, action: str, place: AddressRange) -> None:
        gate.require(grant, action, now=0, place=place)

    return FencedMemory(FakeMemory({Pa(0): BYTES}), require)


def test_reads_within_a_range_and_nowhere_else() -> None:
    memory = fenced(Limits(ranges=(AddressRange(Space.PHYSICAL, 0x100, 0x80),)))
    assert memory.read(Pa(0x100), 0x80) == BYTES[0x100:0x180]
    for pa, size in [(0xFF, 1), (0x100, 0x81), (0x180, 1), (0, 0x2000), (1 << 40, 1)]:
        with pytest.raises(PolicyDenied):
            memory.read(Pa(pa), size)


def test_a_virtual_range_opens_no_physical_address() -> None:
    memory = fenced(Limits(ranges=(AddressRange(Space.VIRTUAL, 0, 1 << 64),)))
    with pytest.raises(PolicyDenied):
        memory.read(Pa(0), 1)


def test_counts_bytes_and_reads() -> None:
    memory = fenced(Limits(bytes_per_second=10, per_second=3))
    assert memory.read(Pa(0), 6) == BYTES[:6]
    with pytest.raises(PolicyDenied, match="10 bytes a second"):
        memory.read(Pa(0), 5)
    memory.read(Pa(0), 2)
    memory.read(Pa(0), 2)
    with pytest.raises(PolicyDenied, match="3 times a second"):
        memory.read(Pa(0), 1)


def test_what_is_no_memory_is_a_fault_as_ever() -> None:
    memory = fenced(Limits(ranges=(AddressRange(Space.PHYSICAL, 0, 1 << 63),)))
    with pytest.raises(MemoryFault):
        memory.read(Pa(len(BYTES)), 1)


def test_gives_no_mapping_away() -> None:
    memory = fenced(Limits(per_second=1))
    assert memory.windows == ()
    assert [(one.start, one.end) for one in memory.ranges] == [(0, len(BYTES))]
