"""Dumps that somebody prepared: whatever their bytes are, an answer or an error of ours, and soon."""

import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import qvmi
from qvmi.addr import Pa
from qvmi.errors import NotADump, QvmiError
from tests.hostile.bounds import cpu_seconds, peak_mib
from tests.synthetic.dumps import avml, elf_core, lime, range_header, vmcoreinfo_note

PAGE = 4096
RUNS = {0: bytes(range(256)) * 64, 1 << 20: b"text" * 4096, 1 << 32: bytes(PAGE)}
WRITERS: list[Callable[..., Path]] = [elf_core, lime, avml]
HEAD = 600
"""Bytes at the beginning that decide most."""

words = st.one_of(
    st.sampled_from(
        [0, 1, 0xFF, 0xFFFF, 1 << 20, 1 << 31, 1 << 32, 1 << 52, 1 << 63, (1 << 64) - 1]
    ),
    st.integers(0, (1 << 64) - 1),
)


def look(path: Path) -> None:
    """This asks a dump for everything; only errors of ours may come out of it."""
    with suppress(QvmiError), qvmi.open_dump(path, use_cache=False) as dump:
        for ram in dump.memory.ranges:
            with suppress(QvmiError):
                dump.memory.read(ram.start, min(ram.size, 1 << 20))
            with suppress(QvmiError):
                dump.memory.read(Pa(ram.end - 1), 2)
        list(dump.memory.data_ranges())
        with suppress(QvmiError):
            dump.guest.processes()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    write=st.sampled_from(WRITERS),
    changes=st.lists(st.tuples(st.integers(0, HEAD), words, st.booleans()), max_size=4),
    cut=st.one_of(st.none(), st.integers(0, 40_000)),
)
def test_wrong_words_and_cuts_anywhere(
    tmp_path: Path,
    write: Callable[..., Path],
    changes: list[tuple[int, int, bool]],
    cut: int | None,
) -> None:
    notes = {"notes": vmcoreinfo_note(b"OSRELEASE=6")} if write is elf_core else {}
    path = write(tmp_path / "dump", RUNS, **notes)
    with path.open("r+b") as file:
        for offset, word, aligned in changes:
            file.seek(offset & ~7 if aligned else offset)
            file.write(struct.pack("<Q", word))
    if cut is not None:
        os.truncate(path, min(cut, path.stat().st_size))
    with cpu_seconds(20):
        look(path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    magic=st.sampled_from([b"\x7fELF\x02\x01\x01", b"EMiL\1\0\0\0", b"AVML\2\0\0\0", b""]),
    data=st.binary(max_size=9000),
    whole=st.booleans(),
)
def test_any_bytes_behind_a_magic(
    tmp_path: Path, magic: bytes, data: bytes, *, whole: bool
) -> None:
    path = tmp_path / "dump"
    path.write_bytes(magic + data + bytes(-len(magic + data) % PAGE if whole else 0))
    with cpu_seconds(20):
        look(path)


def test_a_bomb_is_told_by_its_headers_and_never_unpacked(tmp_path: Path) -> None:
    """A few kilobytes that tell of a petabyte, in chunks that unpack to the most there may be."""
    bomb = b"\xfe\x01\x00"  # a literal byte, then copies of it: at most 64 bytes out of 3
    body = b"\x80\x80\x04" + b"\x00\0" + bomb * 1024
    chunk = b"\x00" + (len(body) + 4).to_bytes(3, "little") + bytes(4) + body
    path = tmp_path / "dump"
    head = range_header(0, 1 << 50, compressed=True) + b"\xff\x06\x00\x00sNaPpY"
    path.write_bytes(head + chunk * 20_000)
    with (
        peak_mib(64),
        cpu_seconds(20),
        pytest.raises(NotADump, match="cut off"),
        qvmi.open_dump(path, use_cache=False),
    ):
        pass


def test_a_file_of_headers_costs_what_its_bound_says(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    headers = [range_header(number << 13, 1) + b"x" for number in range(200_000)]
    path.write_bytes(b"".join(headers))
    with (
        peak_mib(256),
        cpu_seconds(30),
        pytest.raises(NotADump, match="as number"),
        qvmi.open_dump(path, use_cache=False),
    ):
        pass


def test_a_sparse_file_of_a_terabyte_is_looked_through_at_once(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    path.touch()
    os.truncate(path, 1 << 40)
    with peak_mib(64), cpu_seconds(20):
        look(path)
    assert path.stat().st_blocks == 0
