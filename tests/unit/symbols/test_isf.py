"""A running kernel becomes an ISF file: symbols without KASLR, types of what lies there, one form."""

import base64
import bz2
import gzip
import json
import lzma
import os
import resource
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qvmi.errors import CorruptTable, UsageError
from qvmi.symbols.isf import isf_document, write_isf
from tests.synthetic.btf import BtfBuilder, Member
from tests.synthetic.kallsyms import Line, Order
from tests.unit.symbols.isf_reading import as_json
from tests.unit.symbols.small_kernel import BANNER, LINK_START, SYMBOLS, SmallKernel, small_types


def document(kernel: SmallKernel) -> dict[str, Any]:
    return as_json(isf_document(kernel.live(), slide=kernel.slide, banner=BANNER))


def symbols(kernel: SmallKernel) -> dict[str, Any]:
    found: dict[str, Any] = document(kernel)["symbols"]
    return found


def write(path: Path, kernel: SmallKernel | None = None) -> None:
    kernel = kernel or SmallKernel()
    write_isf(kernel.live(), path, slide=kernel.slide, banner=BANNER)


def test_names_the_conventions_that_volatility_asks_for_and_who_wrote_it() -> None:
    metadata = document(SmallKernel())["metadata"]
    assert metadata["format"] == "6.2.0"
    assert metadata["producer"]["name"] == "dwarf2json"
    version = tuple(map(int, metadata["producer"]["version"].split(".")))
    assert version >= (0, 8, 0)
    assert metadata["producer"]["generator"] == "qvmi"


def test_every_symbol_is_where_it_was_linked() -> None:
    found = symbols(SmallKernel(slide=0x1C00_0000))
    first: dict[str, int] = {}
    for one in SYMBOLS:
        first.setdefault(one.name, one.address)
    assert {name: found[name]["address"] for name in first} == first


def test_offsets_into_per_cpu_areas_are_not_moved() -> None:
    assert symbols(SmallKernel(slide=0x1C00_0000))["runqueues"]["address"] == 0x1F80


def test_the_same_build_gives_the_same_file_wherever_it_runs() -> None:
    assert document(SmallKernel(slide=0)) == document(SmallKernel(slide=0x3E60_0000))


def test_the_banner_is_there_as_dwarf2json_writes_it() -> None:
    banner = symbols(SmallKernel())["linux_banner"]
    assert base64.b64decode(banner["constant_data"]) == BANNER + b"\n\0"
    char = {"kind": "base", "name": "char"}
    assert banner["type"] == {"kind": "array", "count": len(BANNER) + 2, "subtype": char}


def test_every_symbol_has_a_type() -> None:
    found = symbols(SmallKernel())
    assert all("type" in one for one in found.values())
    assert found["schedule"]["type"] == {"kind": "base", "name": "void"}


def test_what_btf_says_of_a_variable_is_its_type() -> None:
    assert symbols(SmallKernel())["runqueues"]["type"] == {"kind": "struct", "name": "rq"}


def test_a_known_variable_has_its_type() -> None:
    assert symbols(SmallKernel())["init_task"]["type"] == {"kind": "struct", "name": "task_struct"}


def test_a_known_variable_whose_type_this_kernel_lacks_has_none() -> None:
    btf = BtfBuilder()
    btf.int_("int", 4)
    assert symbols(SmallKernel(btf=btf.build()))["init_task"]["type"]["name"] == "void"


def test_an_array_ends_where_the_next_symbol_begins() -> None:
    assert symbols(SmallKernel())["__per_cpu_offset"]["type"]["count"] == 64 // 8


def test_taint_flags_are_counted_up_to_the_padding() -> None:
    assert symbols(SmallKernel())["taint_flags"]["type"]["count"] == 3


def test_a_taint_flag_without_the_member_that_volatility_reads_gets_it() -> None:
    btf = BtfBuilder()
    char = btf.int_("char", 1, signed=True)
    btf.struct_("taint_flag", 2, [Member("c_true", char), Member("c_false", char, 1)])
    fields = document(SmallKernel(btf=btf.build()))["user_types"]["taint_flag"]["fields"]
    assert fields["module"] == {"type": {"kind": "base", "name": "_Bool"}, "offset": 0}


def test_the_nameless_type_of_the_timekeeper_is_made_up() -> None:
    found = document(SmallKernel())
    name = found["symbols"]["tk_core"]["type"]["name"]
    timekeeper = found["user_types"][name]["fields"]["timekeeper"]
    assert timekeeper == {"type": {"kind": "struct", "name": "timekeeper"}, "offset": 8}


def test_where_the_timekeeper_has_a_named_type_that_is_used() -> None:
    btf = small_types()
    keeper = btf.struct_("timekeeper", 16, [])
    btf.struct_("tk_data", 24, [Member("timekeeper", keeper, 8)])
    found = document(SmallKernel(btf=btf.build()))
    assert found["symbols"]["tk_core"]["type"] == {"kind": "struct", "name": "tk_data"}
    assert "tk_core" not in found["user_types"]


def test_where_the_timekeeper_has_another_name_it_is_found_by_the_old_one_too() -> None:
    btf = small_types()
    btf.struct_("tk_data", 24, [Member("timekeeper", btf.struct_("timekeeper", 16, []), 8)])
    renamed = [
        Line(one.address, one.type, one.name.replace("tk_core", "timekeeper_data"))
        for one in SYMBOLS
    ]
    found = symbols(SmallKernel(btf=btf.build(), lines=renamed))
    assert found["tk_core"]["address"] == found["timekeeper_data"]["address"]
    assert found["tk_core"]["type"] == {"kind": "struct", "name": "tk_data"}


@pytest.mark.parametrize("order", ["old", "new", "place-relative"])
def test_kallsyms_own_tables_are_symbols_too(order: Order) -> None:
    kernel = SmallKernel(order=order)
    found = symbols(kernel)
    wanted = {
        f"kallsyms_{name}": at - kernel.slide
        for name, at in kernel.kallsyms().at.items()
        if name != "relative_base" or order != "place-relative"
    }
    seen = {name: one["address"] for name, one in found.items() if name.startswith("kallsyms_")}
    assert seen == wanted


def test_without_btf_there_is_no_file(tmp_path: Path) -> None:
    lines = [one for one in SYMBOLS if "BTF" not in one.name]
    with pytest.raises(CorruptTable, match="CONFIG_DEBUG_INFO_BTF"):
        write(tmp_path / "none.json", SmallKernel(lines=lines))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("ending", "expand"),
    [("json", bytes), ("json.xz", lzma.decompress), ("json.gz", gzip.decompress),
     ("json.bz2", bz2.decompress)],
)  # fmt: skip
def test_is_compressed_as_its_name_says(
    tmp_path: Path, ending: str, expand: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"guest.{ending}"
    write(path)
    assert json.loads(expand(path.read_bytes())) == document(SmallKernel())


@pytest.mark.parametrize("ending", ["json", "json.xz", "json.gz", "json.bz2"])
def test_the_same_file_is_written_the_same_to_the_byte(tmp_path: Path, ending: str) -> None:
    write(tmp_path / f"one.{ending}")
    write(tmp_path / f"two.{ending}")
    assert (tmp_path / f"one.{ending}").read_bytes() == (tmp_path / f"two.{ending}").read_bytes()


def test_replaces_the_file_before_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "guest.json"
    path.write_text("before")
    write(path)
    assert json.loads(path.read_bytes())["symbols"]["_text"]["address"] == LINK_START
    assert list(tmp_path.iterdir()) == [path]


def test_has_the_rights_that_new_files_have(tmp_path: Path) -> None:
    path = tmp_path / "guest.json"
    before = os.umask(0o027)
    try:
        write(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_link_is_followed_and_stays_one(tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "guest.json")
    write(link)
    assert link.is_symlink()
    assert (tmp_path / "guest.json").stat().st_size == link.stat().st_size > 1000


def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write(pipe)
        assert os.read(reader, 1 << 20).startswith(b'{"metadata"')
    finally:
        os.close(reader)
    assert pipe.is_fifo()


@pytest.mark.parametrize("name", ["missing/guest.json", "folder", "file/guest.json", "loop"])
def test_a_path_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=f"cannot write .*{name}"):
        write(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_is_an_error_that_says_so() -> None:
    with pytest.raises(UsageError, match="cannot write /dev/full: No space left"):
        write(Path("/dev/full"))


def test_a_write_that_fails_leaves_the_file_before_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "guest.json"
    path.write_text("before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UsageError, match="File too large"):
            write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
