"""What every source of guest memory does alike, whatever it reads from."""

import ctypes
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qvmi.addr import PAGE_SIZE, Pa, PaRange
from qvmi.errors import MemoryFault
from qvmi.memory.dump_source import dump_ways
from qvmi.memory.input_file import InputFile
from qvmi.memory.mapped_ram import MappedRam, RamFile
from qvmi.memory.physical import PhysicalMemory
from qvmi.memory.process_memory import HostRun, ProcessMemory
from qvmi.testing import FakeMemory
from tests.contract.remote_sources import REMOTE_SOURCES, RemoteHost, remote_sources
from tests.synthetic.dumps import avml, elf_core, lime
from tests.synthetic.ram import Ram

# Two runs with a hole of one page between them; the second one begins with a page of zeros.
LOW, HIGH = 0x10000, 0x10000 + 5 * PAGE_SIZE
RUNS = {
    LOW: bytes(range(256)) * (4 * PAGE_SIZE // 256),
    HIGH: bytes(PAGE_SIZE) + b"\xa5" * PAGE_SIZE,
}

Runs = Mapping[int, bytes]
Make = Callable[[Runs, Path], PhysicalMemory]


def mapped_ram(runs: Runs, folder: Path) -> MappedRam:
    files = []
    for start, data in runs.items():
        path = folder / f"{start:x}"
        path.write_bytes(b"before" + data + b"behind")
        files.append(RamFile(PaRange(Pa(start), Pa(start + len(data))), path, len(b"before")))
    return MappedRam(files)


def process_memory(runs: Runs, _: Path) -> ProcessMemory:
    hosted = []
    for start, data in runs.items():
        mapping = mmap.mmap(-1, len(data), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        mapping[:] = data
        # The mapping stays as long as something points into it.
        pointer = ctypes.c_char.from_buffer(mapping)
        KEPT.append(pointer)
        hosted.append(HostRun(PaRange(Pa(start), Pa(start + len(data))), ctypes.addressof(pointer)))
    return ProcessMemory(os.getpid(), hosted)


def fake_memory(runs: Runs, _: Path) -> FakeMemory:
    return FakeMemory({Pa(start): data for start, data in runs.items()})


def fake_mapped_memory(runs: Runs, _: Path) -> FakeMemory:
    return FakeMemory({Pa(start): data for start, data in runs.items()}, mapped=True)


def dumped(write: Callable[[Path, Runs], Path]) -> Make:
    def make(runs: Runs, folder: Path) -> PhysicalMemory:
        file = InputFile(write(folder / "dump", runs))
        (way,) = dump_ways(file)
        memory = way.open()
        file.close()
        return memory

    make.__name__ = f"dumped_as_{write.__name__}"
    return make


KEPT: list[ctypes.c_char] = []
MAKERS: list[Make] = [
    *(mapped_ram, process_memory, fake_memory, fake_mapped_memory),
    *map(dumped, (elf_core, lime, avml)),
]
DIRECT: dict[str, Make] = {make.__name__: make for make in MAKERS}
REMOTE = {
    f"{source} of {'a guest that stands still' if still else 'a guest'}": (source, still)
    for source in REMOTE_SOURCES
    for still in (False, True)
}


@pytest.fixture(scope="module")
def remote_host() -> Iterator[RemoteHost]:
    with remote_sources() as host:
        yield host


@pytest.fixture(params=[*DIRECT, *REMOTE])
def make(request: pytest.FixtureRequest) -> Make:
    if request.param in DIRECT:
        return DIRECT[request.param]
    source, still = REMOTE[request.param]
    host: RemoteHost = request.getfixturevalue("remote_host")
    return lambda runs, _: host.memory(source, runs, still=still)


@pytest.fixture
def memory(make: Make, tmp_path: Path) -> Iterator[PhysicalMemory]:
    made = make(RUNS, tmp_path)
    yield made
    made.close()


def byte_at(pa: int) -> int:
    return next(d[pa - start] for start, d in RUNS.items() if start <= pa < start + len(d))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pa=st.integers(LOW - 8, HIGH + 2 * PAGE_SIZE + 8),
    size=st.one_of(st.integers(1, 16), st.integers(1, 6 * PAGE_SIZE)),
)
def test_a_read_gives_exactly_these_bytes_or_faults(
    memory: PhysicalMemory, pa: int, size: int
) -> None:
    inside = any(start <= pa and pa + size <= start + len(data) for start, data in RUNS.items())
    if inside:
        expected = bytes(byte_at(address) for address in range(pa, pa + size))
        assert memory.read(Pa(pa), size) == expected
    else:
        with pytest.raises(MemoryFault):
            memory.read(Pa(pa), size)


def test_a_fault_names_the_first_address_that_is_no_ram(memory: PhysicalMemory) -> None:
    with pytest.raises(MemoryFault) as caught:
        memory.read(Pa(LOW + 4 * PAGE_SIZE - 4), 8)
    assert caught.value.address == LOW + 4 * PAGE_SIZE


def test_a_read_of_size_zero_in_ram_is_empty(memory: PhysicalMemory) -> None:
    assert memory.read(Pa(LOW), 0) == b""


@pytest.mark.parametrize("pa", [LOW, LOW + 100, 0])
def test_a_size_below_zero_faults(memory: PhysicalMemory, pa: int) -> None:
    with pytest.raises(MemoryFault):
        memory.read(Pa(pa), -1)


@pytest.mark.parametrize("pa", [-1, -LOW, 1 << 52, 1 << 64, 1 << 80])
def test_an_address_that_cannot_be_one_faults(memory: PhysicalMemory, pa: int) -> None:
    with pytest.raises(MemoryFault):
        memory.read(Pa(pa), 8)


def test_a_size_beyond_all_memory_faults(memory: PhysicalMemory) -> None:
    with pytest.raises(MemoryFault):
        memory.read(Pa(LOW), 1 << 62)


def test_the_ranges_rise_and_cover_the_ram_exactly(memory: PhysicalMemory) -> None:
    assert list(memory.ranges) == [
        PaRange(Pa(start), Pa(start + len(data))) for start, data in RUNS.items()
    ]


def test_windows_hold_what_reads_give(memory: PhysicalMemory) -> None:
    for window in memory.windows:
        size = window.end - window.start
        at = window.offset
        assert window.buffer[at : at + size] == memory.read(window.start, size)


def test_windows_cover_all_ram_or_there_are_none(memory: PhysicalMemory) -> None:
    covered = [PaRange(window.start, window.end) for window in memory.windows]
    assert covered in ([], list(memory.ranges))


def test_data_ranges_rise_within_ram_and_leave_no_byte_but_zeros_out(
    memory: PhysicalMemory,
) -> None:
    told = list(memory.data_ranges())
    assert all(below.end <= above.start for below, above in pairwise(told))
    covered = {pa for one in told for pa in range(one.start, one.end)}
    ram = {pa for start, data in RUNS.items() for pa in range(start, start + len(data))}
    assert covered <= ram
    assert not any(byte_at(pa) for pa in ram - covered)


def test_the_description_is_for_people(memory: PhysicalMemory) -> None:
    assert memory.description.isprintable()
    assert memory.description


def test_a_closed_source_faults_however_often_it_is_closed(memory: PhysicalMemory) -> None:
    memory.close()
    memory.close()
    with pytest.raises(MemoryFault):
        memory.read(Pa(LOW), 1)
    assert list(memory.windows) == []


def test_runs_that_touch_are_one_range_and_read_as_one(make: Make, tmp_path: Path) -> None:
    touching = make({0: b"a" * PAGE_SIZE, PAGE_SIZE: b"b" * PAGE_SIZE}, tmp_path)
    assert list(touching.ranges) == [PaRange(Pa(0), Pa(2 * PAGE_SIZE))]
    assert touching.read(Pa(PAGE_SIZE - 2), 4) == b"aabb"
    touching.close()


def test_the_ram_of_synthetic_guests_reads_as_the_others_do() -> None:
    ram = Ram(PAGE_SIZE, start=LOW)
    ram.write(LOW + 5, b"bytes")
    assert ram.read(Pa(LOW + 5), 5) == b"bytes"
    for pa, size in ((LOW - 1, 1), (LOW, PAGE_SIZE + 1), (LOW, -1)):
        with pytest.raises(MemoryFault):
            ram.read(Pa(pa), size)
