"""Memory of a process, with this process as the machine."""

import ctypes
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qvmi.addr import Pa, PaRange
from qvmi.errors import MemoryFault
from qvmi.memory.process_memory import HostRun, ProcessMemory

PAGE = 4096
PAGES = 16
START = 0x10000
END = START + PAGES * PAGE


def address_of(mapping: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


def run(start: int, size: int, host_address: int) -> HostRun:
    return HostRun(PaRange(Pa(start), Pa(start + size)), host_address)


@pytest.fixture
def anonymous() -> mmap.mmap:
    """Private memory of no file, as QEMU's without a shared backend; every third page written."""
    mapping = mmap.mmap(-1, PAGES * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(0, PAGES, 3):
        mapping[page * PAGE] = page + 1
    return mapping


@pytest.fixture
def memory(anonymous: mmap.mmap) -> Iterator[ProcessMemory]:
    opened = ProcessMemory(os.getpid(), [run(START, PAGES * PAGE, address_of(anonymous))])
    yield opened
    opened.close()


def test_reads_what_the_process_holds(memory: ProcessMemory) -> None:
    assert memory.read(Pa(START + 3 * PAGE - 1), 3) == b"\0\4\0"


def test_a_read_goes_across_runs_that_touch(anonymous: mmap.mmap) -> None:
    base = address_of(anonymous)
    # The guest sees page 3 before page 0.
    swapped = ProcessMemory(os.getpid(), [run(PAGE, PAGE, base), run(0, PAGE, base + 3 * PAGE)])
    assert swapped.read(Pa(0), 2 * PAGE) == b"\4" + bytes(PAGE - 1) + b"\1" + bytes(PAGE - 1)
    assert swapped.ranges == (PaRange(Pa(0), Pa(2 * PAGE)),)
    swapped.close()


@pytest.mark.parametrize(
    ("pa", "first_missing"), [(0, 0), (0x10000 + PAGES * PAGE - 1, 0x10000 + PAGES * PAGE)]
)
def test_a_read_that_leaves_ram_faults(memory: ProcessMemory, pa: int, first_missing: int) -> None:
    with pytest.raises(MemoryFault) as caught:
        memory.read(Pa(pa), 2)
    assert caught.value.address == first_missing


def test_there_are_no_windows(memory: ProcessMemory) -> None:
    assert memory.windows == ()


def test_pages_never_touched_are_left_out(memory: ProcessMemory) -> None:
    told = {
        page
        for one in memory.data_ranges()
        for page in range((one.start - START) // PAGE, (one.end - START) // PAGE)
    }
    assert told == set(range(0, PAGES, 3))


def test_where_pagemap_cannot_tell_all_is_data(tmp_path: Path) -> None:
    # A private mapping of a file holds the file's bytes in pages that nobody touched.
    path = tmp_path / "ram"
    path.write_bytes(b"\7" * PAGES * PAGE)
    with path.open("r+b") as file:
        mapping = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE)
    memory = ProcessMemory(os.getpid(), [run(0, PAGES * PAGE, address_of(mapping))])
    assert list(memory.data_ranges()) == [PaRange(Pa(0), Pa(PAGES * PAGE))]
    memory.close()


def test_where_the_process_has_nothing_the_read_faults() -> None:
    memory = ProcessMemory(os.getpid(), [run(0, PAGE, 0x1000)])
    with pytest.raises(MemoryFault, match="Input/output error"):
        memory.read(Pa(0), 1)
    memory.close()


def test_a_mapping_that_ends_early_faults_where_it_ends() -> None:
    mapping = mmap.mmap(-1, 2 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    base = address_of(mapping)
    libc = ctypes.CDLL(None)
    assert libc.munmap(ctypes.c_void_p(base + PAGE), ctypes.c_size_t(PAGE)) == 0
    memory = ProcessMemory(os.getpid(), [run(0, 2 * PAGE, base)])
    with pytest.raises(MemoryFault) as caught:
        memory.read(Pa(PAGE - 8), 16)
    assert caught.value.address == PAGE
    memory.close()
    # Python would unmap the second page again, whoever has it by then.
    again = libc.mmap
    again.restype = ctypes.c_void_p
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10  # MAP_FIXED
    assert again(ctypes.c_void_p(base + PAGE), PAGE, 3, flags, -1, 0) == base + PAGE


def test_a_process_that_may_not_be_read_or_is_gone_is_said_so() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
        gone = ended.pid
    with pytest.raises(MemoryFault, match=f"/proc/{gone}/mem"):
        ProcessMemory(gone, [run(0, PAGE, 0)])


def test_a_process_that_ends_meanwhile_faults() -> None:
    script = "import sys; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as child:
        memory = ProcessMemory(child.pid, [run(0, PAGE, 0x400000)])
    with pytest.raises(MemoryFault, match=f"process {memory.description.split()[-1]}"):
        memory.read(Pa(0), 1)
    assert list(memory.data_ranges()) == [PaRange(Pa(0), Pa(PAGE))]
    memory.close()


def test_a_closed_memory_faults(memory: ProcessMemory) -> None:
    memory.close()
    memory.close()
    with pytest.raises(MemoryFault, match="closed"):
        memory.read(Pa(START), 1)
    with pytest.raises(MemoryFault, match="closed"):
        list(memory.data_ranges())
