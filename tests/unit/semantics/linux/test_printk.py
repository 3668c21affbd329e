"""Rings of log records written by hand."""

import struct

import pytest

from qvmi.errors import SymbolNotFound, WalkFailed
from qvmi.semantics.guest_os import LogRecord
from qvmi.semantics.linux.printk import KernelLog
from qvmi.semantics.linux.structures.list import ListWalk
from tests.synthetic.kernel_files import KernelFiles

NOWHERE = 0x4141_4141_4141_4141
COMMITTED, REUSABLE = 1, 3


def walk(memory: KernelFiles) -> ListWalk[LogRecord]:
    return KernelLog(memory.space, memory.symbols).records()


def texts(memory: KernelFiles) -> list[str]:
    return [row.text for row in walk(memory).rows.values()]


def descriptor(memory: KernelFiles, ring: int, number: int) -> int:
    return memory.get(ring + 8) + 0x18 * number


def info(memory: KernelFiles, ring: int, number: int) -> int:
    return memory.get(ring + 0x10) + 0x60 * number


def test_a_record_has_all_its_fields() -> None:
    memory = KernelFiles()
    memory.log([b"", b"out of paper"])
    assert list(walk(memory).rows.values())[1] == LogRecord(
        sequence=1,
        time_s=1.0,
        level=6,
        facility=1,
        text="out of paper",
        subsystem="usb",
        device="+usb:1",
    )


def test_a_ring_that_has_gone_round_begins_with_the_oldest_that_is_left() -> None:
    memory = KernelFiles()
    memory.log([b"record %d" % n for n in range(20)])
    assert texts(memory) == [f"record {n}" for n in range(12, 20)]


def test_a_record_whose_text_was_overwritten_is_left_out() -> None:
    memory = KernelFiles()
    memory.log([b"x" * 40 + b"%d" % n for n in range(7)])
    assert [text[40:] for text in texts(memory)] == ["3", "4", "5", "6"]
    assert walk(memory).gaps == []


@pytest.mark.parametrize("state", [0, COMMITTED, REUSABLE])
def test_what_is_no_whole_record_is_left_out_without_a_gap(state: int) -> None:
    memory = KernelFiles()
    ring = memory.log([b"one", b"two", b"three"])
    memory.u64(descriptor(memory, ring, 1), 1 | state << 62)
    assert texts(memory) == ["one", "three"]
    assert walk(memory).gaps == []


def test_an_empty_line_has_no_text_and_a_lost_one_no_record() -> None:
    memory = KernelFiles()
    ring = memory.log([b"one", b"two", b"three"])
    memory.write(descriptor(memory, ring, 0) + 8, struct.pack("<QQ", 3, 3))
    memory.write(descriptor(memory, ring, 1) + 8, struct.pack("<QQ", 1, 1))
    assert texts(memory) == ["", "three"]


def test_bytes_that_are_no_text_are_written_as_codes() -> None:
    memory = KernelFiles()
    memory.log([b"\xff\x1b[m\ntwo"])
    assert texts(memory) == ["\\xff\x1b[m\ntwo"]


def test_a_text_longer_than_its_block_ends_with_the_block() -> None:
    memory = KernelFiles()
    ring = memory.log([b"one", b"two"])
    memory.write(info(memory, ring, 0) + 0x10, b"\xff\xff")
    assert texts(memory) == ["one\0\0\0\0\0", "two"]


def test_a_record_that_is_overwritten_meanwhile_is_one_no_more() -> None:
    memory = KernelFiles(mapped=False)
    ring = memory.log([b"one", b"two"])
    place = info(memory, ring, 0) + memory.to_pa

    def overwrite(pa: int) -> None:
        if pa == place:
            memory.ram.before_read = None
            memory.u64(descriptor(memory, ring, 0), 8)

    memory.ram.before_read = overwrite
    found = walk(memory)
    assert [row.text for row in found.rows.values()] == ["two"]
    assert (found.gaps, found.retries) == ([], 1)


# ------------------------------------------------------------------------------ what cannot be


@pytest.mark.parametrize(
    ("begin", "following"), [(4, 24), (0, 4), (24, 8), (0, 0), (NOWHERE & ~7, 0)]
)
def test_a_text_that_lies_nowhere_is_a_gap_and_hides_no_other(begin: int, following: int) -> None:
    memory = KernelFiles()
    ring = memory.log([b"one", b"two", b"three"])
    memory.write(descriptor(memory, ring, 1) + 8, struct.pack("<QQ", begin, following))
    found = walk(memory)
    assert [row.text for row in found.rows.values()] == ["one", "three"]
    assert [gap.address for gap in found.gaps] in ([descriptor(memory, ring, 1)], [])
    assert found.gaps or begin & ~7 == begin  # or the block there is of another record


@pytest.mark.parametrize(
    ("place", "value"), [(0, 0), (0, 25), (0, 64), (0x30, 0), (0x30, 32), (0x18, 1 << 40)]
)
def test_sizes_that_no_ring_has_are_refused(place: int, value: int) -> None:
    memory = KernelFiles()
    ring = memory.log([b"one"])
    memory.u64(ring + place, value)
    with pytest.raises(WalkFailed, match="printk_ringbuffer"):
        walk(memory)


def test_descriptors_that_are_nowhere_are_gaps_of_a_bounded_number() -> None:
    memory = KernelFiles()
    ring = memory.log([b"one"])
    memory.write(ring, struct.pack("<I4xQQQQ", 20, NOWHERE, NOWHERE, (1 << 20) - 1, 0))
    found = walk(memory)
    assert not found.rows
    assert 1000 < len(found.gaps) < 1010


def test_a_pointer_to_nowhere_is_said_so() -> None:
    memory = KernelFiles()
    memory.log([b"one"])
    memory.u64(memory.symbols.addresses["prb"], NOWHERE)
    with pytest.raises(WalkFailed, match="printk_ringbuffer"):
        walk(memory)


def test_a_kernel_before_5_10_is_said_to_lack_the_ring() -> None:
    memory = KernelFiles()
    with pytest.raises(SymbolNotFound, match="prb"):
        walk(memory)
