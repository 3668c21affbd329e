"""Readers of several members at once."""

import pytest

from qvmi.errors import CorruptTable, MemoryFault
from qvmi.semantics.linux.structures.record import compile_reader
from tests.synthetic.kernel_memory import DIRECT_MAP, KernelMemory


@pytest.fixture
def memory() -> KernelMemory:
    memory = KernelMemory()
    memory.write(DIRECT_MAP + 0x8000, bytes(range(64)))
    return memory


def test_members_come_in_the_order_they_were_asked_for(memory: KernelMemory) -> None:
    read = compile_reader(memory.space, (8, "B"), (2, "H"), (16, "4s"), (4, "I"))
    assert read(DIRECT_MAP + 0x8000) == (8, 0x0302, b"\x10\x11\x12\x13", 0x07060504)


def test_members_that_rise_and_touch_are_read_as_they_lie(memory: KernelMemory) -> None:
    read = compile_reader(memory.space, (0, "Q"), (8, "Q"))
    assert read(DIRECT_MAP + 0x8000) == (0x0706050403020100, 0x0F0E0D0C0B0A0908)


@pytest.mark.parametrize(
    "members",
    [
        [(0, "Q"), (4, "I")],
        [(8, "I"), (8, "I")],
        [(8, "I"), (0, "16s")],
        [(0, "I"), (1 << 16, "I")],
        [(0, "I"), (1 << 29, "I")],
        [(-8, "I"), (0, "I")],
    ],
)
def test_members_no_struct_can_have_are_refused(
    memory: KernelMemory, members: list[tuple[int, str]]
) -> None:
    with pytest.raises(CorruptTable, match="types"):
        compile_reader(memory.space, *members)


def test_a_struct_that_cannot_be_read_faults(memory: KernelMemory) -> None:
    read = compile_reader(memory.space, (8, "I"), (0, "I"))
    with pytest.raises(MemoryFault):
        read(0x1000)
