"""Names and types of the kernel, its modules and added files: what the guest, bpftool and gcc say of them.

bpftool writes the kernel's types as a header in C; gcc then says whether each layout is that of the header.
"""

import base64
import json
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

import qvmi
from qvmi import Va
from qvmi.errors import LayoutNotFound, SymbolNotFound, UsageError
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.symbols.type_layout import MemberLayout, TypeKind, TypeLayout
from tests.command_line import qvmi as run_qvmi
from tests.command_line import qvmi_document
from tests.guests.aarch64_guests import aarch64
from tests.guests.lab import KERNELS, Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool

SBIN: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CONFIGS: Final = [*map(GuestConfig, KERNELS), aarch64()]
OF_NAMES: Final = [CONFIGS[0], *CONFIGS[-2:]]
"""The oldest, the newest, and another architecture: each form of the tables, which others look at whole."""
SAMPLE: Final = 300
"""Types drawn by chance, beside those that everyone asks for."""
ASKED_FOR: Final = (
    *("task_struct", "list_head", "mm_struct", "file", "inode", "dentry", "super_block", "sock"),
    *("sk_buff", "net", "module", "cred", "page", "vm_area_struct", "signal_struct", "rq", "pid"),
    *(
        "enum pid_type",
        "pid_t",
        "atomic_t",
        "spinlock_t",
        "gfp_t",
        "u64",
        "work_func_t",
        "tcp_sock",
    ),
)


WORD: Final = 1 << 32
ASKED_AT_ONCE: Final = 60
"""Symbols; a request to the guest has 4096 bytes."""
DRAWN: Final = (
    "awk '$3 !~ /^[A-Za-z0-9_]+$/ { next }"
    " $4 { if ($2 ~ /[tT]/ && ++m % 100 == 7) print; next }"
    " $2 ~ /[tdrbTDRB]/ { if (++n % 2500 == 7) print }' /proc/kallsyms"
)
LOOKED_UP: Final = (
    'awk \'BEGIN { n = split("WORDS", word); for (at = 1; at <= n; at++) wanted[word[at]] }'
    " $1 in wanted || $3 in wanted' /proc/kallsyms"
)
"""Some of the kernel's symbols, and some functions of modules."""


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda one: one.kernel)
def anyone(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """This is a guest of every kernel, and one of the other architecture."""
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(request.param)


@pytest.fixture
def linux(anyone: Guest, profiles: Path) -> Iterator[LinuxGuest]:
    with qvmi.attach_sync(anyone.qmp, cache=profiles) as machine:
        yield machine.guest


# ------------------------------------------------------------------------------------------- names


def _lines(guest: Guest, command: str) -> list[tuple[int, str, str, str]]:
    """These are lines of /proc/kallsyms: address, type, name, module."""
    words = (line.split() for line in guest.run(command).decode().splitlines())
    return [
        (int(address, 16), kind, name, more[0].strip("[]") if more else "")
        for address, kind, name, *more in words
    ]


@pytest.mark.parametrize("anyone", OF_NAMES, indirect=True, ids=lambda one: one.kernel)
def test_every_name_and_address_is_as_in_proc_kallsyms(
    anyone: Guest, linux: LinuxGuest, proof_count: Callable[[int], None]
) -> None:
    drawn = [line for line in _lines(anyone, DRAWN) if line[0] >> 63]
    sample = random.Random(4).sample(drawn, min(len(drawn), ASKED_AT_ONCE))
    assert sum(not line[3] for line in sample) > 10
    assert sum(bool(line[3]) for line in sample) > 10
    words = " ".join(f"{address:016x} {name}" for address, _, name, _ in sample)
    lines = _lines(anyone, LOOKED_UP.replace("WORDS", words))
    for address, _, name, module in sample:
        names = {line[2] for line in lines if line[0] == address}
        for behind in (0, 1):
            found = linux.symbols.nearest(Va(address + behind))
            assert found is not None
            if not behind or found.address == address:  # another one may begin at the next byte
                assert (found.address, found.module) == (address, module)
                assert found.name in names
        symbol = linux.symbols.symbol(name)
        assert symbol.address in {line[0] for line in lines if line[2] == name}
        assert linux.symbols.find(name) == symbol.address
    proof_count(len(sample))


def test_a_name_that_nobody_has_is_told_as_that(linux: LinuxGuest) -> None:
    assert linux.symbols.find("no_such_symbol_anywhere") is None
    with pytest.raises(SymbolNotFound):
        linux.symbols.symbol("no_such_symbol_anywhere")
    with pytest.raises(LayoutNotFound):
        linux.symbols.type("struct no_such_struct_anywhere")
    with pytest.raises(LayoutNotFound):
        linux.symbols.type("enum task_struct")
    assert linux.symbols.nearest(Va(0x1000)) is None


# ------------------------------------------------------------------------------------------- types


def _program(name: str) -> str:
    found = shutil.which(name, path=SBIN)
    if found is None:
        pytest.skip(f"{name} is not on this machine: apt-get install {name}")
    return found


@pytest.fixture
def blob(linux: LinuxGuest, tmp_path: Path) -> Path:
    """These are the kernel's types as they lie in its memory."""
    start, stop = (linux.symbols.symbol(f"__{end}_BTF").address for end in ("start", "stop"))
    path = tmp_path / "vmlinux"
    path.write_bytes(linux.kernel.space.read(start, stop - start))
    return path


def _dumped(blob: Path, *more: str) -> list[dict[str, Any]]:
    command = [_program("bpftool"), *more, "-j", "btf", "dump", "file", str(blob)]
    done = subprocess.run(command, capture_output=True, check=True)
    types: list[dict[str, Any]] = json.loads(done.stdout)["types"]
    return types


Place = tuple[str, int, int, int]
"""(path, first bit, width of a bit-field or 0, bytes of its type) of a member."""
LEADS_ON: Final = {"TYPEDEF", "CONST", "VOLATILE", "RESTRICT", "TYPE_TAG"}


@dataclass(frozen=True)
class Described:
    """These are the types as bpftool tells them, by id."""

    types: Sequence[dict[str, Any]]

    @cached_property
    def first(self) -> dict[tuple[str, str], int]:
        """This is the first type of each kind and name."""
        pairs = list(enumerate(self.types))
        return {(one["kind"], one["name"]): at for at, one in reversed(pairs)}

    def named(self, name: str) -> int:
        """This is the first type of a name, a struct before others."""
        kind, _, tag = name.rpartition(" ")
        kinds = [kind.upper()] if kind else ["STRUCT", "UNION", "TYPEDEF", "ENUM", "INT"]
        return next(self.first[one, tag] for one in kinds if (one, tag) in self.first)

    def behind(self, type_id: int) -> dict[str, Any]:
        while (one := self.types[type_id])["kind"] in LEADS_ON:
            type_id = one["type_id"]
        return one

    def size(self, type_id: int) -> int:
        one = self.behind(type_id)
        if one["kind"] == "ARRAY":
            return int(one["nr_elems"]) * self.size(one["type_id"])
        return 8 if one["kind"] == "PTR" else int(one.get("size", 0))

    def places(self, one: dict[str, Any], base: int = 0, path: str = "") -> Iterator[Place]:
        """These are the members that have a name, those of anonymous types in their place."""
        for member in one.get("members", ()):
            of, at = self.types[member["type_id"]], base + member["bits_offset"]
            name = member["name"].replace("(anon)", "")
            if name:
                size = self.size(member["type_id"])
                yield path + name, at, member.get("bitfield_size", 0), size
            if of["kind"] in {"STRUCT", "UNION"} and (of["name"] == "(anon)" or not name):
                yield from self.places(of, at, f"{path}{name}." if name else path)


def _members(members: Sequence[MemberLayout], path: str = "") -> Iterator[tuple[str, MemberLayout]]:
    """These are the members that have a name, with how C names them."""
    for member in members:
        if member.name:
            yield path + member.name, member
        yield from _members(member.members, f"{path}{member.name}." if member.name else path)


def _places(layout: TypeLayout) -> list[Place]:
    return [
        (path, 8 * one.offset + one.bit_offset, one.bit_size, one.size)
        for path, one in _members(layout.members)
    ]


def _claims(layout: TypeLayout) -> Iterator[str]:
    """This is what is claimed of the types of members, in C."""
    name = layout.name
    if layout.kind in {TypeKind.STRUCT, TypeKind.UNION}:
        name = f"{layout.kind.value} {name}"
    if layout.type and "{" not in layout.type:
        yield f"__builtin_types_compatible_p({name}, {layout.type})"
    for path, member in _members(layout.members):
        if not member.bit_size and member.size and "{" not in member.type:
            this = f"__typeof__((({name} *)0)->{path})"
            yield f"__builtin_types_compatible_p({this}, {member.type})"


def test_every_type_is_as_bpftool_and_gcc_see_it(
    blob: Path, linux: LinuxGuest, tmp_path: Path, proof_count: Callable[[int], None]
) -> None:
    described = Described([{"kind": "VOID", "name": "void"}, *_dumped(blob)])
    named = Counter(
        f"{one['kind'].lower()} {one['name']}"
        for one in described.types
        if one["kind"] in {"STRUCT", "UNION", "ENUM"} and one["name"] != "(anon)" and one["vlen"]
    )
    unique = sorted(name for name in named if named[name] == 1)
    layouts = []
    for name in (*ASKED_FOR, *random.Random(4).sample(unique, SAMPLE)):
        true, layout = described.named(name), linux.symbols.type(name)
        inner = described.behind(true)
        assert layout.size == described.size(true), name
        assert _places(layout) == list(described.places(inner)), name
        # bpftool 7.1 writes values that have no sign as if they had one.
        constants = [(one.name, one.value % WORD) for one in layout.constants]
        assert constants == [(one["name"], one["val"] % WORD) for one in inner.get("values", ())]
        layouts.append(layout)
    claims = [claim for layout in layouts for claim in _claims(layout)]
    assert _refused(blob, claims, tmp_path / "claims.c") == ""
    proof_count(len(claims))


def _refused(blob: Path, claims: Sequence[str], source: Path) -> str:
    """This is what gcc says of claims about the types that bpftool writes as a header."""
    command = [_program("bpftool"), "btf", "dump", "file", str(blob), "format", "c"]
    header = subprocess.run(command, capture_output=True, check=True).stdout
    (source.parent / "vmlinux.h").write_bytes(header)
    lines = [f'_Static_assert({claim}, "{at}");' for at, claim in enumerate(claims)]
    source.write_text("\n".join(['#include "vmlinux.h"', *lines]))
    done = subprocess.run(
        [_program("gcc"), "-std=gnu11", "-w", "-fsyntax-only", "-fmax-errors=20", str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr


def test_bit_fields_are_where_bpftool_sees_them(blob: Path, linux: LinuxGuest) -> None:
    described = {one["name"]: one for one in reversed(_dumped(blob)) if one["kind"] == "STRUCT"}
    compared = 0
    for name in ("task_struct", "orc_entry", "tcphdr", "iphdr", "sched_dl_entity", "user_struct"):
        if name not in described:
            continue
        true = {
            one["name"]: (one["bits_offset"], one["bitfield_size"])
            for one in described[name]["members"]
            if one.get("bitfield_size")
        }
        seen = {
            one.name: (8 * one.offset + one.bit_offset, one.bit_size)
            for one in linux.symbols.type(f"struct {name}").members
            if one.bit_size
        }
        assert seen == true
        compared += len(true)
    assert compared > 20


def test_a_type_of_a_module_is_told_with_the_module(
    anyone: Guest, linux: LinuxGuest, blob: Path, tmp_path: Path
) -> None:
    shown = anyone.run("ls /sys/kernel/btf").decode().split()
    if anyone.config.kernel == "5.10":
        assert shown == ["vmlinux"]  # its modules have no types
        return
    raw = anyone.run("base64 /sys/kernel/btf/veth")
    (tmp_path / "veth").write_bytes(base64.b64decode(raw))
    known = {one["name"] for one in _dumped(blob)}
    own = [
        one
        for one in _dumped(tmp_path / "veth", "-B", str(blob))
        if one["kind"] == "STRUCT" and one["name"] not in known
    ]
    assert own
    for one in own:
        layout = linux.symbols.type(one["name"])
        assert (layout.module, layout.size) == ("veth", one["size"])
        assert [(row.name, 8 * row.offset + row.bit_offset) for row in layout.members] == [
            (row["name"].replace("(anon)", ""), row["bits_offset"]) for row in one["members"]
        ]
        assert linux.symbols.size_of(one["name"]) == one["size"]
    enums = [one for one in _dumped(tmp_path / "veth", "-B", str(blob)) if one["kind"] == "ENUM"]
    for one in (its for its in enums if its["name"] not in {"(anon)", *known}):
        for constant in one["values"]:
            value = linux.symbols.find_enumerator(one["name"], constant["name"])
            assert value == constant["val"]


# ----------------------------------------------------------------------------------------- merging


@pytest.fixture(scope="module")
def isf(guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """This is the kernel's own symbol file."""
    path = tmp_path_factory.mktemp("isf") / "guest.json"
    qvmi_document("--no-cache", "--qmp", guest.qmp, "isf", "-o", str(path))
    document: dict[str, Any] = json.loads(path.read_bytes())
    return document


def _written(path: Path, document: object) -> Path:
    path.write_bytes(msgspec.json.encode(document))
    return path


MINE: Final = {
    "size": 24,
    "kind": "struct",
    "fields": {
        "next": {
            "offset": 0,
            "type": {"kind": "pointer", "subtype": {"kind": "base", "name": "int"}},
        },
        "flags": {
            "offset": 8,
            "type": {
                "kind": "bitfield",
                "bit_position": 9,
                "bit_length": 3,
                "type": {"kind": "base", "name": "int"},
            },
        },
    },
}


@pytest.mark.parametrize("guest", ["6.1"], indirect=True)
def test_a_file_adds_what_is_new_and_what_contradicts_the_guest_is_told_and_refused(
    guest: Guest, profiles: Path, isf: dict[str, Any], tmp_path: Path
) -> None:
    few = ("_text", "linux_banner", "init_task", "init_pid_ns")
    more = json.loads(json.dumps(isf | {"symbols": {name: isf["symbols"][name] for name in few}}))
    more["symbols"]["my_hook"] = {"address": isf["symbols"]["init_task"]["address"] + 16}
    more["user_types"] = {name: more["user_types"][name] for name in ("list_head", "pid")}
    more["user_types"]["my_struct"] = MINE
    more["enums"] = {"pid_type": more["enums"]["pid_type"]}
    more["symbols"]["init_task"]["address"] += 64
    more["user_types"]["list_head"]["fields"]["prev"]["offset"] = 12
    with qvmi.attach_sync(guest.qmp, cache=profiles) as machine:
        own = machine.symbols.merge(_written(tmp_path / "own.json", isf))
        result = machine.symbols.merge(_written(tmp_path / "more.json", more))
        symbols = machine.symbols
        assert symbols.find("my_hook") == symbols.symbol("init_task").address + 16
        assert symbols.type("my_struct").source == str(tmp_path / "more.json")
        assert symbols.type("list_head").members[1].offset == 8
    assert own.known > 50_000
    # Where two structs have one name, the file has chosen by what refers to them.
    doubles = {one.name for one in own.conflicts}
    assert len(doubles) < 30
    assert (result.symbols, result.types, result.unplaced) == (1, 1, 0)
    told = {one.name: (one.known, one.refused) for one in result.conflicts}
    assert told.keys() == {"init_task", "struct list_head"}
    assert result.known == len(few) - 1 + len(("pid", "pid_type"))
    assert told["struct list_head"] == ("prev at 8", "prev at 12")


@pytest.mark.parametrize("guest", ["6.1"], indirect=True)
def test_what_was_added_is_seen_in_every_way_to_look(
    guest: Guest, profiles: Path, isf: dict[str, Any], tmp_path: Path
) -> None:
    path = _written(tmp_path / "mine.json", isf | {"symbols": {}, "user_types": {"mine": MINE}})
    with qvmi.attach_sync(guest.qmp, cache=profiles) as machine:
        machine.query(lambda linux: linux.symbols.merge(path))
        mine = machine.symbols.type("struct mine")
        assert machine.capture(lambda linux: linux.symbols.type("mine")) == mine
        with machine.paused():
            assert machine.symbols.type("mine") == mine
        assert machine.symbols.size_of("mine") == 24
        field = machine.symbols.find_field("mine", ["nothing", "flags"])
    assert field == ("flags", 9, 1, 3)
    assert [(row.name, row.type, row.offset, row.bit_offset) for row in mine.members] == [
        ("next", "int *", 0, 0),
        ("flags", "int", 9, 1),
    ]


@pytest.mark.parametrize("guest", ["6.1"], indirect=True)
def test_a_file_of_something_else_is_placed_where_it_is_told_and_another_kernel_refused(
    guest: Guest, profiles: Path, isf: dict[str, Any], tmp_path: Path
) -> None:
    module = {
        "base_types": isf["base_types"],
        "user_types": {"my_struct": MINE},
        "enums": {"my_enum": {"size": 4, "base": "int", "constants": {"MY_ONE": 1}}},
        "symbols": {"my_function": {"address": 0x40}, "my_other": {"address": 0x80}},
    }
    other = json.loads(json.dumps(isf))
    banner = base64.b64encode(b"Linux version 6.1.0-other (gcc) #1\n\0").decode()
    other["symbols"]["linux_banner"]["constant_data"] = banner
    with qvmi.attach_sync(guest.qmp, cache=profiles) as machine:
        path = _written(tmp_path / "module.json", module)
        types_alone = machine.symbols.merge(path)
        assert (types_alone.symbols, types_alone.types, types_alone.unplaced) == (0, 2, 2)
        placed = machine.symbols.merge(path, base=Va(0xFFFFFFFFC0FF0000))
        assert (placed.symbols, placed.types, placed.known) == (2, 0, 2)
        found = machine.symbols.nearest(Va(0xFFFFFFFFC0FF0048))
        assert found is not None
        assert (found.name, found.address) == ("my_function", 0xFFFFFFFFC0FF0040)
        assert machine.symbols.type("enum my_enum").constants[0].value == 1
        with pytest.raises(UsageError, match="is not of the kernel that runs here"):
            machine.symbols.merge(_written(tmp_path / "other.json", other))
        assert machine.symbols.find("my_other") == 0xFFFFFFFFC0FF0080
    with qvmi.attach_sync(guest.qmp, cache=profiles) as machine:  # nothing of it is kept
        assert machine.symbols.find("my_other") is None


@pytest.mark.parametrize("guest", ["6.1"], indirect=True)
def test_a_dump_has_the_same_names_and_types(guest: Guest, profiles: Path, tmp_path: Path) -> None:
    with qvmi.attach_sync(guest.qmp, cache=profiles) as machine:
        machine.dump(tmp_path / "core")
        live = machine.symbols
        veth = next(row for row in machine.guest.modules() if row.name == "veth")
        wanted = (live.type("task_struct"), live.type("veth_priv"), live.nearest(veth.address))
    with qvmi.open_dump(tmp_path / "core", cache=profiles) as dump:
        symbols = dump.symbols
        seen = (
            symbols.type("task_struct"),
            symbols.type("veth_priv"),
            symbols.nearest(veth.address),
        )
    assert seen == wanted
    assert seen[1].module == "veth"


# ----------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize("guest", ["6.1"], indirect=True)
def test_the_commands_print_them(
    guest: Guest, isf: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine = ("--qmp", guest.qmp)
    (line,) = _lines(guest, "grep ' [tT] ' /proc/kallsyms | grep -w '\\[veth\\]' | awk 'NR==5'")
    shown = qvmi_document(*machine, "symbol", f"{line[0] + 1:#x}")
    assert (shown["offset"], shown["module"]) == (1, "veth")
    assert qvmi_document(*machine, "symbol", line[2])["address"] == line[0]
    assert qvmi_document(*machine, "read", line[2], "16")["address"] == line[0]
    text = run_qvmi(*machine, "symbol", f"{line[0] + 1:#x}").stdout
    assert text.endswith("+0x1 [veth]\n")
    listed = run_qvmi(*machine, "type", "list_head").stdout.splitlines()
    assert [line.split() for line in listed] == [
        ["struct", "list_head,", "16", "bytes"],
        ["OFFSET", "SIZE", "TYPE", "NAME"],
        ["0", "8", "struct", "list_head", "*", "next"],
        ["8", "8", "struct", "list_head", "*", "prev"],
    ]
    own = _written(tmp_path / "own.json", isf)
    assert run_qvmi(*machine, "--isf", str(own), "type", "list_head").stdout.splitlines() == listed
    document = qvmi_document(*machine, "type", "task_struct")
    assert document["kind"] == "struct"
    assert {"offset", "size"} == set(document["holes"][0])
    assert run_qvmi(*machine, "type", "no_such_type").returncode == 4
