"""A dump is recognised by its first bytes, and what is wrong with it is said."""

import os
import socket
import struct
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from qvmi.addr import PAGE_SIZE, Pa, PaRange
from qvmi.errors import MemoryFault, NotADump, UsageError
from qvmi.memory.dump_source import DumpWay, dump_ways
from qvmi.memory.input_file import InputFile
from tests.synthetic.dumps import (
    avml,
    chunk,
    elf_core,
    lime,
    range_header,
    snappy_frames,
    vmcoreinfo_note,
)

RUNS = {0: b"low" * PAGE_SIZE, 1 << 32: b"high" * PAGE_SIZE}
PROGRAM_HEADERS = 64
"""``e_phoff`` of the cores made here; one header is 56 bytes, that of the notes the first."""
GIB = 1 << 30


def ways(path: Path, **options: int | bool) -> list[DumpWay]:
    file = InputFile(path)
    try:
        return list(dump_ways(file, **options))  # type: ignore[arg-type] # as the tests below name them
    finally:
        file.close()


def refusal(path: Path) -> str:
    with pytest.raises(NotADump) as caught:
        ways(path)
    assert caught.value.target == str(path)
    return caught.value.reason


def changed(path: Path, offset: int, data: bytes) -> Path:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
    return path


@pytest.mark.parametrize(
    ("write", "form"), [(elf_core, "ELF core"), (lime, "LiME"), (avml, "AVML")]
)
def test_each_form_is_recognised_and_says_where_memory_lies(
    tmp_path: Path, write: Callable[..., Path], form: str
) -> None:
    file = InputFile(write(tmp_path / "dump", RUNS))
    (way,) = dump_ways(file)
    memory = way.open()
    file.close()
    assert (way.form, way.certain) == (form, True)
    assert [ram.start for ram in memory.ranges] == list(RUNS)
    assert memory.read(Pa(1 << 32), 8) == b"highhigh"
    assert str(tmp_path / "dump") in memory.description
    memory.close()


# ------------------------------------------------------------------------------------------ ELF cores


def test_a_core_gives_the_kernels_note(tmp_path: Path) -> None:
    note = vmcoreinfo_note(b"OSRELEASE=6.1")
    other = struct.pack("<III", 5, 3, 1) + b"CORE\0\0\0\0abc\0"
    (way,) = ways(elf_core(tmp_path / "core", RUNS, notes=other + note))
    assert way.vmcoreinfo == (b"OSRELEASE=6.1",)


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_core_with_damaged_notes_is_read_without_them(tmp_path: Path, cut: int) -> None:
    notes = vmcoreinfo_note(b"A=1") + struct.pack("<III", 0xFFFF_FFFF, 0xFFFF_FFFF, 1)[:cut]
    (way,) = ways(elf_core(tmp_path / "core", RUNS, notes=notes))
    assert way.vmcoreinfo == (b"A=1",)


def test_more_segments_than_16_bits_count_are_counted_in_section_0(tmp_path: Path) -> None:
    path = elf_core(tmp_path / "core", RUNS, extended=True)
    file = InputFile(path)
    (way,) = dump_ways(file)
    memory = way.open()
    assert [ram.start for ram in memory.ranges] == list(RUNS)
    memory.close()
    file.close()


def test_what_a_core_tells_twice_counts_once_and_goes_on_where_it_ends(tmp_path: Path) -> None:
    path = elf_core(tmp_path / "core", {0: b"a" * 8192, 4096: b"b" * 8192, 1: b"c"})
    file = InputFile(path)
    (way,) = dump_ways(file)
    memory = way.open()
    assert list(memory.ranges) == [PaRange(Pa(0), Pa(12288))]
    assert memory.read(Pa(0), 12288) == b"a" * 8192 + b"b" * 4096
    memory.close()
    file.close()


def test_what_a_segment_left_out_is_no_memory(tmp_path: Path) -> None:
    path = elf_core(tmp_path / "core", {0: b"a" * 8192})
    changed(path, PROGRAM_HEADERS + 56 + 32, struct.pack("<Q", 4096))  # p_filesz
    file = InputFile(path)
    (way,) = dump_ways(file)
    memory = way.open()
    assert list(memory.ranges) == [PaRange(Pa(0), Pa(4096))]
    with pytest.raises(MemoryFault):
        memory.read(Pa(4096), 1)
    memory.close()
    file.close()


@pytest.mark.parametrize(
    ("offset", "data", "words"),
    [
        (4, b"\x01", "not of 64 bits"),
        (5, b"\x02", "not of 64 bits"),
        (16, b"\x02\x00", r"no core \(e_type 2\)"),
        (18, b"\xf3\x00", r"another architecture .*243"),
        (54, b"\x20\x00", "program headers of 32 bytes"),
        (56, b"\x00\x00", "holds no memory"),
        (32, b"\xff" * 8, "cannot be read"),
        (32, b"\x00\x00\x00\x00\x01\x00\x00\x00", "cut off"),
        (PROGRAM_HEADERS + 56 + 8, b"\xff" * 8, "cut off"),  # p_offset
        (PROGRAM_HEADERS + 56 + 24, b"\xff" * 8, "which cannot be"),  # p_paddr
        (PROGRAM_HEADERS + 56 + 32, b"\x00" * 6 + b"\x01\x00", "cut off"),  # p_filesz
        (PROGRAM_HEADERS + 56 + 32, b"\xff" * 8, "which cannot be"),
    ],
)
def test_a_core_that_cannot_be_says_what_is_wrong(
    tmp_path: Path, offset: int, data: bytes, words: str
) -> None:
    path = changed(elf_core(tmp_path / "core", RUNS), offset, data)
    with pytest.raises(NotADump, match=words):
        ways(path)


def test_a_core_with_headers_without_end_is_refused_before_they_are_read(tmp_path: Path) -> None:
    path = elf_core(tmp_path / "core", RUNS, extended=True)
    section_at = PROGRAM_HEADERS + 56 * (len(RUNS) + 1)
    assert "program headers, more than" in refusal(
        changed(path, section_at + 44, b"\xff\xff\xff\xff")
    )


def test_a_core_of_crumbs_is_refused(tmp_path: Path) -> None:
    path = elf_core(tmp_path / "core", {number * 8192: b"crumb" for number in range(2000)})
    assert "2000 pieces" in refusal(path)


# ------------------------------------------------------------------------------------- LiME and AVML


@pytest.mark.parametrize("write", [lime, avml])
def test_a_range_that_is_cut_off_is_told_with_the_place(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    path = write(tmp_path / "dump", RUNS)
    os.truncate(path, path.stat().st_size - 9)
    assert "cut off" in refusal(path)


@pytest.mark.parametrize("write", [lime, avml])
def test_what_follows_the_last_range_must_be_a_header(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    path = write(tmp_path / "dump", RUNS)
    with path.open("ab") as file:
        file.write(bytes(64))
    assert f"no header of a memory range at {path.stat().st_size - 64:#x}" in refusal(path)


@pytest.mark.parametrize("write", [lime, avml])
def test_a_range_that_ends_before_it_begins_is_refused(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    path = changed(write(tmp_path / "dump", RUNS), 8, struct.pack("<Q", 1 << 40))
    assert "has a range from 0x10000000000" in refusal(path)


def test_avml_ranges_that_overlap_are_refused(tmp_path: Path) -> None:
    assert "out of order" in refusal(avml(tmp_path / "dump", {4096: bytes(4096), 0: bytes(4096)}))


def avml_stream(path: Path, size: int, stream: bytes, *, told: int | None = None) -> Path:
    header = range_header(0, size, compressed=True)
    path.write_bytes(header + stream + struct.pack("<Q", len(stream) if told is None else told))
    return path


IDENTIFIER = b"\xff\x06\x00\x00sNaPpY"


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (b"\xff\x06\x00\x00SnApPy" + bytes(64), "no Snappy stream"),
        (IDENTIFIER + b"\x02\x04\x00\x00abcd" + bytes(64), "unknown kind 0x2"),
        (IDENTIFIER + chunk(b"a" * 3000) * 2, "too many"),
        (IDENTIFIER + chunk(b"a" * 4000), "cut off"),
        (IDENTIFIER + chunk(b"a" * 70_000), "70000 bytes"),
        (IDENTIFIER + chunk(b"a" * 70_000, plain=True), "70000 bytes"),
        (IDENTIFIER + chunk(b""), "0 bytes"),
        (IDENTIFIER + b"\x00\x0a\x00\x00abcd\xff\xff\xff\xff\x0f\x00", "65537 bytes"),
        (IDENTIFIER + b"\x01\x00\x00\x00" * 3, "-4 bytes"),
        (IDENTIFIER + b"\xfe\x00\x00\x00" * 70_000, "without data"),
    ],
)
def test_a_stream_that_cannot_be_is_refused_without_decompressing(
    tmp_path: Path, stream: bytes, words: str
) -> None:
    assert words in refusal(avml_stream(tmp_path / "dump", 4096, stream))


def test_a_stream_whose_size_is_told_wrongly_is_refused(tmp_path: Path) -> None:
    stream = snappy_frames(b"a" * 4096, size=1000)
    path = avml_stream(tmp_path / "dump", 4096, stream, told=len(stream) + 1)
    assert "contradicts itself" in refusal(path)


@pytest.mark.parametrize("plain", [True, False])
def test_a_damaged_chunk_is_a_fault_where_it_is_read_and_nowhere_else(
    tmp_path: Path, *, plain: bool
) -> None:
    path = avml(tmp_path / "dump", {0: b"a" * 4096}, size=2048, plain=plain)
    changed(path, path.stat().st_size - 20, b"b")
    file = InputFile(path)
    (way,) = dump_ways(file)
    memory = way.open()
    assert memory.read(Pa(0), 2048) == b"a" * 2048
    with pytest.raises(MemoryFault, match="damaged"):
        memory.read(Pa(2047), 2)
    memory.close()
    file.close()


def test_without_the_library_an_avml_file_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cramjam", None)
    (way,) = ways(avml(tmp_path / "dump", RUNS))
    with pytest.raises(UsageError, match=r"qvmi\[avml\]"):
        way.open()


# ------------------------------------------------------------------------------------------- raw RAM


def sparse(path: Path, size: int) -> Path:
    path.touch()
    os.truncate(path, size)
    return path


def test_raw_ram_may_lie_flat_or_split_by_the_hole_below_4_gib(tmp_path: Path) -> None:
    found = ways(sparse(tmp_path / "ram", 4 * GIB))
    assert not any(way.certain for way in found)
    splits = [way.form for way in found]
    assert splits[:2] == ["raw RAM", "raw RAM from 0x40000000 on"]
    assert [split.split()[2] for split in splits[2:]] == ["2048", "3072", "3584", "2816", "1024"]


def test_the_bytes_above_the_hole_lie_behind_those_below_it(tmp_path: Path) -> None:
    path = sparse(tmp_path / "ram", 3 * GIB)
    changed(path, 2 * GIB - 4, b"low.high")
    file = InputFile(path)
    (way,) = dump_ways(file, below_4g=2 * GIB)
    memory = way.open()
    assert memory.read(Pa(2 * GIB - 4), 4) == b"low."
    assert memory.read(Pa(4 * GIB), 4) == b"high"
    assert [ram.size for ram in memory.ranges] == [2 * GIB, GIB]
    memory.close()
    file.close()


def test_what_is_below_the_hole_is_flat_whatever_is_told(tmp_path: Path) -> None:
    (way,) = ways(sparse(tmp_path / "ram", GIB), below_4g=2 * GIB)
    assert (way.form, way.certain) == ("raw RAM", True)


def test_raw_ram_that_begins_like_something_else_is_raw_when_it_is_told_so(tmp_path: Path) -> None:
    path = changed(sparse(tmp_path / "ram", GIB), 0, b"\x7fELF")
    assert ways(path, raw=True)[0].form == "raw RAM"
    with pytest.raises(NotADump):
        ways(path)


# ------------------------------------------------------------------------------------ what is no dump


@pytest.mark.parametrize(
    ("magic", "words"),
    [
        (b"KDUMP   ", "kdump-compressed: take it as ELF"),
        (b"makedumpfile\0\0\0\0", "kdump-compressed"),
        (b"PAGEDU64", "Windows"),
        (b"QEVM", "saved state of QEMU"),
        (b"LibvirtQemudSave", "virsh dump --memory-only"),
        (b"\x1f\x8b\x08", "gzip-compressed"),
        (b"\xfd7zXZ\0", "xz-compressed"),
        (b"QFI\xfb", "disk image"),
    ],
)
def test_what_is_often_taken_for_a_dump_is_named_with_the_way_out(
    tmp_path: Path, magic: bytes, words: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(magic.ljust(8192, b"\0"))
    assert words in refusal(path)


def test_a_size_of_no_whole_pages_is_no_raw_ram(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"text")
    assert "no dump that is known" in refusal(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert refusal(tmp_path / "file") == "is empty"


def test_what_is_no_regular_file_is_refused_without_opening_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        told = {
            "pipe": refusal(tmp_path / "pipe"),
            "socket": refusal(tmp_path / "socket"),
            "device": refusal(Path("/dev/zero")),
            "folder": refusal(tmp_path),
        }
    assert {kind: text.split(":")[0] for kind, text in told.items()} == {
        kind: f"is a {kind}" for kind in told
    }


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "nothing")
    with pytest.raises(NotADump, match="cannot be opened"):
        InputFile(Path("with\0nul"))


def test_the_windows_of_many_pieces_rise(tmp_path: Path) -> None:
    runs = {number * 8192: bytes([number]) * 4096 for number in range(100)}
    file = InputFile(lime(tmp_path / "dump", runs))
    (way,) = dump_ways(file)
    memory = way.open()
    assert all(below.end <= above.start for below, above in pairwise(memory.windows))
    assert all(memory.read(Pa(start), 4096) == data for start, data in runs.items())
    memory.close()
    file.close()
