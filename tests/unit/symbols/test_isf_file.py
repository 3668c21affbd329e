"""ISF files of users: of today's and older writers, damaged, too large, or of something else."""

import base64
import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qvmi.addr import Va
from qvmi.errors import CorruptTable, SymbolsError, UsageError
from qvmi.symbols.isf_file import IsfFile, IsfSymbols
from qvmi.symbols.layout import Field, field

START = 0xFFFF_FFFF_8100_0000
BANNER = b"Linux version 4.19.0 (gcc) #1 SMP"
INT = {"kind": "base", "name": "int"}
MIB = 1 << 20

Pack = Callable[[bytes], bytes]


def content(**changes: object) -> dict[str, Any]:
    """A file as dwarf2json writes it today, by hand."""
    return {
        "metadata": {
            "linux": {"symbols": [{"kind": "dwarf", "name": "vmlinux"}]},
            "producer": {"name": "dwarf2json", "version": "0.9.0"},
            "format": "6.2.0",
        },
        "base_types": {"int": {"size": 4, "signed": True, "kind": "int", "endian": "little"}},
        "user_types": {
            "task_struct": {
                "size": 64,
                "kind": "struct",
                "fields": {
                    "pid": {"type": INT, "offset": 0},
                    "unnamed_field_8": {
                        "type": {"kind": "union", "name": "unnamed_3f"},
                        "offset": 8,
                        "anonymous": True,
                    },
                },
            },
            "unnamed_3f": {
                "size": 8,
                "kind": "union",
                "fields": {"inner": {"type": INT, "offset": 4}},
            },
        },
        "enums": {},
        "symbols": {
            "_text": {"type": INT, "address": START},
            "linux_banner": {
                "type": {"kind": "array", "count": 35, "subtype": INT},
                "address": START + 0x1000,
                "constant_data": base64.b64encode(BANNER + b"\n\0").decode(),
            },
            "init_task": {"type": {"kind": "struct", "name": "task_struct"}, "address": START + 64},
            "runqueues": {"type": INT, "address": 0x1F80},
        },
        **changes,
    }


def save(folder: Path, document: object, name: str = "guest.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(document, indent=1))
    return path


def read(folder: Path, document: object) -> IsfFile:
    return IsfFile.read(save(folder, document))


def symbols_of(folder: Path, document: object, *, start: int = START) -> IsfSymbols:
    file = read(folder, document)
    return IsfSymbols(file, slide=file.slide(Va(start)))


def test_tells_the_kernel_it_is_of(tmp_path: Path) -> None:
    file = read(tmp_path, content())
    assert (file.banner, file.link_start) == (BANNER, START)


def test_the_banner_may_be_missing(tmp_path: Path) -> None:
    document = content()
    del document["symbols"]["linux_banner"]["constant_data"]
    assert read(tmp_path, document).banner == b""


@pytest.mark.parametrize(
    "pack", [bytes, lzma.compress, gzip.compress, bz2.compress], ids=["plain", "xz", "gz", "bz2"]
)
@pytest.mark.parametrize("name", ["guest.json", "guest.json.xz", "guest"])
def test_is_read_whatever_its_name_says_of_its_compression(
    tmp_path: Path, pack: Pack, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(pack(json.dumps(content()).encode()))
    assert IsfFile.read(path).banner == BANNER


@pytest.mark.parametrize("bits", [48, 57])
def test_addresses_that_were_cut_are_made_whole_again(tmp_path: Path, bits: int) -> None:
    document = content()
    for symbol in document["symbols"].values():
        symbol["address"] &= (1 << bits) - 1
    symbols = symbols_of(tmp_path, document, start=START + 0x200_0000)
    assert symbols.find("init_task") == START + 64 + 0x200_0000
    assert symbols.find("runqueues") == 0x1F80


def test_addresses_may_be_written_as_negative_numbers(tmp_path: Path) -> None:
    document = content()
    for symbol in document["symbols"].values():
        if symbol["address"] >> 63:
            symbol["address"] -= 1 << 64
    assert symbols_of(tmp_path, document).find("init_task") == START + 64


def test_a_file_with_addresses_of_one_run_fits_another(tmp_path: Path) -> None:
    document = content()
    for symbol in document["symbols"].values():
        symbol["address"] += 0x1E00_0000 if symbol["address"] >> 63 else 0
    assert symbols_of(tmp_path, document, start=START).find("init_task") == START + 64


def test_anonymous_members_of_older_writers_are_told_by_their_names(tmp_path: Path) -> None:
    document = content()
    del document["user_types"]["task_struct"]["fields"]["unnamed_field_8"]["anonymous"]
    symbols = symbols_of(tmp_path, document)
    assert field(symbols, "task_struct", "inner") == Field("inner", 12)


def test_symbols_may_lack_types_and_files_may_have_more_than_is_known(tmp_path: Path) -> None:
    document = content(extra={"a": [1, None]})
    del document["symbols"]["init_task"]["type"]
    document["symbols"]["init_task"]["linkage_name"] = "x"
    document["user_types"]["task_struct"]["fields"]["pid"]["type"] = {"kind": "class", "name": "C"}
    symbols = symbols_of(tmp_path, document)
    assert symbols.find("init_task") == START + 64
    assert field(symbols, "task_struct", "pid") == Field("pid", 0)


def test_an_anonymous_member_of_a_missing_type_has_no_members(tmp_path: Path) -> None:
    document = content()
    del document["user_types"]["unnamed_3f"]
    assert symbols_of(tmp_path, document).find_field("task_struct", ["inner"]) is None


def test_a_symbols_type_is_unknown(tmp_path: Path) -> None:
    nearest = symbols_of(tmp_path, content()).nearest(Va(START + 70))
    assert nearest is not None
    assert nearest.type == "?"


def test_a_kernel_between_pages_is_not_the_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"guest\.json is not of the kernel that starts at"):
        read(tmp_path, content()).slide(Va(START + 1))


@pytest.mark.parametrize("name", ["missing.json", "", "file/guest.json"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=f"cannot read the ISF file .*{name}"):
        IsfFile.read(tmp_path / name)


def broken(**parts: object) -> dict[str, Any]:
    document = content()
    for place, value in parts.items():
        *way, last = place.split("__")
        target = document
        for step in way:
            target = target[step]
        target[last] = value
    return document


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\0",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'"symbols"',
        b'{"symbols": {}, "user_types": {}}',
        b'{"symbols": [], "user_types": {}}',
        b"\xff\xfe{\0}\0",
        b"[" * 100_000,
        b'{"symbols": ' + b'{"a":' * 100_000,
        json.dumps(content()).encode()[:-2],
        json.dumps(content()).encode() + b"}",
        json.dumps(broken(symbols__init_task={"type": INT})).encode(),
        json.dumps(broken(symbols__init_task__address="0xffff")).encode(),
        json.dumps(broken(symbols__linux_banner__constant_data="no base64!")).encode(),
        json.dumps(broken(symbols__linux_banner__constant_data=7)).encode(),
        json.dumps(broken(symbols___text__address=0)).encode(),
        json.dumps(broken(symbols___text__address=0x401000)).encode(),
        json.dumps(broken(symbols___text__address=START + 5)).encode(),
        json.dumps(content(symbols={"KdVersionBlock": {"address": 4096}})).encode(),
    ],
)
def test_what_is_no_isf_file_of_a_kernel_is_refused_by_name(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "odd.json"
    path.write_bytes(text)
    with pytest.raises(CorruptTable, match=r"odd\.json"):
        IsfFile.read(path)


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress, bz2.compress])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_archive_is_refused_by_name(tmp_path: Path, pack: Pack, damage: str) -> None:
    packed = bytearray(pack(json.dumps(content()).encode()))
    if damage == "cut":
        del packed[len(packed) // 2 :]
    else:
        packed[len(packed) // 2] ^= 0xFF
    path = tmp_path / "odd.json.packed"
    path.write_bytes(packed)
    with pytest.raises(CorruptTable, match=r"odd\.json\.packed"):
        IsfFile.read(path)


def test_a_small_file_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(gzip.compress(bytes(129 * MIB), compresslevel=1))
    with pytest.raises(CorruptTable, match="bomb: it holds more than 128 MiB"):
        IsfFile.read(path)


@pytest.mark.parametrize(
    "user_type",
    [
        7,
        {},
        {"size": 8},
        {"size": 8, "fields": []},
        {"size": -8, "fields": {}},
        {"size": 8, "fields": {"pid": {"type": INT}}},
        {"size": 8, "fields": {"pid": {"type": INT, "offset": -1}}},
        {"size": 8, "fields": {"pid": {"type": INT, "offset": 1 << 40}}},
        {"size": 8, "fields": {"pid": {"type": {}, "offset": 0}}},
    ],
)
def test_a_type_that_is_none_is_refused_when_it_is_asked_for(
    tmp_path: Path, user_type: object
) -> None:
    symbols = symbols_of(tmp_path, broken(user_types__task_struct=user_type))
    assert symbols.find("init_task") == START + 64
    with pytest.raises(CorruptTable, match=r"guest\.json"):
        symbols.find_field("task_struct", ["pid"])
    with pytest.raises(CorruptTable, match=r"guest\.json"):
        symbols.size_of("task_struct")


def nested(width: int) -> dict[str, Any]:
    """A struct of nothing but itself, so many times."""
    member = {"type": {"kind": "struct", "name": "task_struct"}, "offset": 0, "anonymous": True}
    fields = {f"unnamed_field_{n}": member for n in range(width)}
    return broken(user_types__task_struct={"size": 8, "kind": "struct", "fields": fields})


@pytest.mark.parametrize("width", [1, 3, 1000])
def test_a_struct_made_of_itself_many_times_is_refused(tmp_path: Path, width: int) -> None:
    with pytest.raises(SymbolsError):
        symbols_of(tmp_path, nested(width)).find_field("task_struct", ["pid"])
