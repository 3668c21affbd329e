"""RAM files: several of them, holes in them, and files that are not what they should be."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from qvmi.addr import Pa, PaRange
from qvmi.errors import MemoryFault
from qvmi.memory.mapped_ram import MappedRam, RamFile

PAGE = 4096
MakeFile = Callable[[str, bytes], Path]


@pytest.fixture
def make_file(tmp_path: Path) -> MakeFile:
    def make(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return make


def run(path: Path, start: int, size: int, offset: int = 0) -> RamFile:
    return RamFile(PaRange(Pa(start), Pa(start + size)), path, offset)


def numbered(pages: int, first: int = 0) -> bytes:
    """Pages that each hold their number in every byte."""
    return b"".join(bytes([first + page]) * PAGE for page in range(pages))


# ----------------------------------------------------------------------------------------------- reading


def test_one_file_in_two_places_with_a_hole_between_is_read_from_both(make_file: MakeFile) -> None:
    # As QEMU lays out more than 2 GiB on q35: the file goes on above 4 GiB.
    path = make_file("ram", numbered(4))
    memory = MappedRam([run(path, 0, 2 * PAGE), run(path, 1 << 32, 2 * PAGE, offset=2 * PAGE)])
    assert memory.read(Pa(PAGE), 1) + memory.read(Pa((1 << 32) + PAGE), 1) == b"\x01\x03"
    assert memory.ranges == (
        PaRange(Pa(0), Pa(2 * PAGE)),
        PaRange(Pa(1 << 32), Pa((1 << 32) + 2 * PAGE)),
    )


def test_a_read_goes_across_files_that_touch(make_file: MakeFile) -> None:
    low, high = make_file("low", numbered(1, 7)), make_file("high", numbered(2, 8))
    memory = MappedRam([run(high, PAGE, 2 * PAGE), run(low, 0, PAGE)])
    assert memory.read(Pa(PAGE - 2), PAGE + 4) == b"\7\7" + b"\x08" * PAGE + b"\x09\x09"
    assert memory.ranges == (PaRange(Pa(0), Pa(3 * PAGE)),)


def test_pieces_that_go_on_in_one_file_are_one_window(make_file: MakeFile) -> None:
    # As QEMU lays out the first MiB, whose pieces the chipset may write-protect one by one.
    path = make_file("ram", numbered(4))
    memory = MappedRam([run(path, PAGE * at, PAGE, offset=PAGE * at) for at in (2, 0, 3, 1)])
    assert [(one.start, one.end, one.offset) for one in memory.windows] == [(0, 4 * PAGE, 0)]
    assert memory.read(Pa(0), 4 * PAGE) == numbered(4)


@pytest.mark.parametrize(
    ("name", "start", "offset"),
    [("ram", PAGE, 2 * PAGE), ("ram", 2 * PAGE, PAGE), ("other", PAGE, PAGE)],
)
def test_pieces_apart_in_address_or_file_are_windows_of_their_own(
    make_file: MakeFile, name: str, start: int, offset: int
) -> None:
    first, second = make_file("ram", numbered(3)), make_file(name, numbered(3))
    memory = MappedRam([run(first, 0, PAGE), run(second, start, PAGE, offset=offset)])
    assert [(one.start, one.offset) for one in memory.windows] == [(0, 0), (start, offset)]


@pytest.mark.parametrize(
    ("pa", "size", "first_missing"), [(0x3000, 1, 0x3000), (0x2FFF, 2, 0x3000), (0, 1, 0)]
)
def test_a_read_that_leaves_ram_faults_at_the_first_byte_missing(
    make_file: MakeFile, pa: int, size: int, first_missing: int
) -> None:
    memory = MappedRam([run(make_file("ram", numbered(2)), 0x1000, 2 * PAGE)])
    with pytest.raises(MemoryFault) as caught:
        memory.read(Pa(pa), size)
    assert (caught.value.address, caught.value.kind) == (first_missing, "physical")


def test_what_another_process_writes_is_seen_at_once(make_file: MakeFile) -> None:
    path = make_file("ram", numbered(1))
    memory = MappedRam([run(path, 0, PAGE)])
    with path.open("r+b") as writer:
        writer.write(b"fork")
    assert memory.read(Pa(0), 4) == b"fork"


def test_the_mapping_cannot_be_written_to(make_file: MakeFile) -> None:
    (window,) = MappedRam([run(make_file("ram", numbered(1)), 0, PAGE)]).windows
    with pytest.raises(TypeError):
        window.buffer[0] = 1


def test_a_window_tells_where_each_byte_lies(make_file: MakeFile) -> None:
    memory = MappedRam([run(make_file("ram", numbered(3)), 0x8000, PAGE, offset=2 * PAGE)])
    (window,) = memory.windows
    assert window.buffer[0x8001 - window.start + window.offset] == 2


def test_an_unlinked_file_is_read_through_its_descriptor(make_file: MakeFile) -> None:
    path = make_file("ram", numbered(1, 5))
    descriptor = os.open(path, os.O_RDONLY)
    path.unlink()
    try:
        memory = MappedRam([run(Path(f"/proc/self/fd/{descriptor}"), 0, PAGE)])
        assert memory.read(Pa(0), 1) == b"\5"
    finally:
        os.close(descriptor)


def test_the_description_names_the_files(make_file: MakeFile) -> None:
    path = make_file("ram", numbered(1))
    assert str(path) in MappedRam([run(path, 0, PAGE)]).description


# ------------------------------------------------------------------------------------- what holds no data


def sparse(path: Path, pages: int, *written: int) -> Path:
    with path.open("wb") as file:
        file.truncate(pages * PAGE)
        for page in written:
            file.seek(page * PAGE)
            file.write(b"x" * PAGE)
    return path


def data(memory: MappedRam) -> list[tuple[int, int]]:
    return [(one.start // PAGE, one.end // PAGE) for one in memory.data_ranges()]


def test_holes_of_the_file_are_left_out(tmp_path: Path) -> None:
    path = sparse(tmp_path / "ram", 32, 3, 4, 20)
    assert data(MappedRam([run(path, 0, 32 * PAGE)])) == [(3, 5), (20, 21)]


def test_data_is_told_by_guest_address_and_cut_at_the_ends_of_a_run(tmp_path: Path) -> None:
    path = sparse(tmp_path / "ram", 32, *range(8, 24))
    memory = MappedRam([run(path, 0, 10 * PAGE), run(path, 100 * PAGE, 4 * PAGE, offset=22 * PAGE)])
    assert data(memory) == [(8, 10), (100, 102)]


def test_a_file_without_any_data_has_no_data_ranges(tmp_path: Path) -> None:
    path = sparse(tmp_path / "ram", 8)
    assert data(MappedRam([run(path, 0, 8 * PAGE)])) == []


# ------------------------------------------------------------------------------------------ what is wrong


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def refusal(*files: RamFile) -> MemoryFault:
    with pytest.raises(MemoryFault) as caught:
        MappedRam(files)
    return caught.value


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "missing: No such file" in str(refusal(run(tmp_path / "missing", 0, PAGE)))


def test_a_file_shorter_than_its_run_is_refused(make_file: MakeFile) -> None:
    path = make_file("ram", numbered(2))
    assert f"{2 * PAGE} bytes" in str(refusal(run(path, 0, 2 * PAGE, offset=PAGE)))


def test_a_run_that_begins_before_its_file_is_refused(make_file: MakeFile) -> None:
    assert refusal(run(make_file("ram", numbered(2)), 0x5000, PAGE, offset=-PAGE)).address == 0x5000


@pytest.mark.parametrize("content", [b"", None])
def test_what_cannot_be_mapped_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path if content is None else tmp_path / "empty"
    if content is not None:
        path.write_bytes(content)
    assert "cannot be mapped" in str(refusal(run(path, 0, PAGE)))


def test_two_files_for_one_address_are_refused(make_file: MakeFile) -> None:
    path = make_file("ram", numbered(2))
    assert refusal(run(path, 0, 2 * PAGE), run(path, PAGE, PAGE)).address == PAGE


def test_a_refusal_leaves_no_descriptor_open(make_file: MakeFile, tmp_path: Path) -> None:
    good = make_file("ram", numbered(1))
    before = open_descriptors()
    refusal(run(good, 0, PAGE), run(tmp_path / "missing", PAGE, PAGE))
    assert open_descriptors() == before


# ------------------------------------------------------------------------------------------------- the end


def test_a_closed_memory_faults_and_has_no_windows(make_file: MakeFile) -> None:
    memory = MappedRam([run(make_file("ram", numbered(1)), 0, PAGE)])
    memory.close()
    assert memory.windows == ()
    with pytest.raises(MemoryFault, match="closed"):
        memory.read(Pa(0), 1)


def test_closing_gives_the_descriptors_back(make_file: MakeFile) -> None:
    before = open_descriptors()
    memory = MappedRam([run(make_file("ram", numbered(1)), 0, PAGE)])
    memory.close()
    memory.close()
    assert open_descriptors() == before


def test_closing_while_the_bytes_are_in_use_closes_all_the_same(make_file: MakeFile) -> None:
    memory = MappedRam([run(make_file("ram", numbered(1, 9)), 0, PAGE)])
    view = memoryview(memory.windows[0].buffer)
    memory.close()
    assert view[0] == 9


def test_closing_between_two_data_ranges_faults_rather_than_ends(tmp_path: Path) -> None:
    low, high = sparse(tmp_path / "low", 2, 0), sparse(tmp_path / "high", 2, 0)
    memory = MappedRam([run(low, 0, 2 * PAGE), run(high, 4 * PAGE, 2 * PAGE)])
    data_ranges = memory.data_ranges()
    next(data_ranges)
    memory.close()
    with pytest.raises(MemoryFault, match="closed"):
        list(data_ranges)


def test_reading_much_allocates_nothing_for_holes(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    before = path.stat().st_blocks
    ram = MappedRam([RamFile(PaRange(Pa(0), Pa(64 << 20)), path, 0)])
    assert ram.read(Pa(0), 64 << 20) == bytes(64 << 20)
    assert path.stat().st_blocks == before
    ram.close()


def test_what_was_cut_off_the_file_faults_when_much_is_read(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    path.write_bytes(bytes(4 << 20))
    ram = MappedRam([RamFile(PaRange(Pa(0), Pa(4 << 20)), path, 0)])
    os.truncate(path, 1 << 20)
    with pytest.raises(MemoryFault, match="cut off"):
        ram.read(Pa(0), 4 << 20)
    ram.close()
