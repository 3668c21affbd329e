"""An ISF file of a live guest is complete, true, and as good as the guest itself.

The oracles are stock Volatility 3, which reads the RAM file and the ISF file and nothing of ours, and
bpftool, which decodes the BTF that the guest shows in its own sysfs.
"""

import base64
import hashlib
import json
import lzma
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import qvmi
from qvmi.errors import CorruptTable
from qvmi.symbols.live import LiveSymbols
from tests.asynchronous import asynchronous
from tests.guests.agreement import assert_processes_agree
from tests.guests.lab import KERNELS, Guest, GuestConfig
from tests.guests.pool import GuestPool
from tests.guests.stock_volatility import VOLATILITY_S, save_isf, volatility
from tests.unit.symbols.isf_reading import assert_fits_schema

SBIN = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def load(path: Path) -> dict[str, Any]:
    data = lzma.decompress(path.read_bytes())
    assert_fits_schema(data)
    document: dict[str, Any] = json.loads(data)
    return document


@pytest.fixture(scope="module")
def isf(guest: Guest, profiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This is the ISF file of the guest, in a folder as Volatility wants it."""
    path = tmp_path_factory.mktemp("symbols") / "linux" / "guest.json.xz"
    path.parent.mkdir()

    @asynchronous
    async def save() -> None:
        await save_isf(guest, path, profiles)

    save()
    return path


# ---------------------------------------------------------------------------------------- Volatility


@pytest.mark.timeout(2 * VOLATILITY_S + 120)
@pytest.mark.parametrize("kernel", KERNELS)
@asynchronous
async def test_stock_volatility_lists_the_guests_own_processes_and_modules(
    guests: GuestPool, kernel: str, tmp_path: Path, proof_count: Callable[[int], None]
) -> None:
    guest = guests.restore(GuestConfig(kernel=kernel, cpu_flags="la57=off"))
    folder = tmp_path / "symbols"
    (folder / "linux").mkdir(parents=True)
    await save_isf(guest, folder / "linux" / "guest.json.xz", tmp_path)
    truth = guest.settled_truth()
    guest.monitor.execute("stop")
    seen, modules = volatility(
        guest.ram_paths[0], folder, tmp_path / "caches", "linux.pslist", "linux.lsmod"
    )
    guest.monitor.execute("cont")
    later = guest.truth()
    lasting = {
        task.pid
        for task, _ in truth.unchanged_until(later).values()
        if task.leads and task.state != "Z"  # Volatility leaves out what has no namespaces any more
    }
    known = {task.pid for task in (*truth.processes, *later.processes)}
    pids = [row["PID"] for row in seen]
    assert lasting <= set(pids) <= known
    assert len(pids) == len(set(pids))
    parents = {task.pid: task.ppid for task in truth.processes}
    assert {row["PID"]: row["PPID"] for row in seen if row["PID"] in lasting} == {
        pid: parents[pid] for pid in lasting
    }
    assert [row["Module Name"] for row in modules] == [module.name for module in truth.modules]
    proof_count(len(lasting))


# ------------------------------------------------------------------------------------------- bpftool


@pytest.fixture(scope="module")
def described(
    guest: Guest, profiles: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """These are the guest's types by id, as bpftool decodes /sys/kernel/btf/vmlinux."""
    bpftool = shutil.which("bpftool", path=SBIN)
    if bpftool is None:
        pytest.skip("bpftool is not on this machine: apt-get install bpftool")
    blob = tmp_path_factory.mktemp("btf") / "vmlinux"

    @asynchronous
    async def save() -> None:
        async with qvmi.attach(guest.qmp, cache=profiles) as machine:
            start, stop = (machine.symbols.find(f"__{end}_BTF") for end in ("start", "stop"))
            assert start is not None
            assert stop is not None
            blob.write_bytes(machine.kernel_space.read(start, stop - start))

    save()
    digest = guest.run("sha256sum /sys/kernel/btf/vmlinux").decode().split()[0]
    assert hashlib.sha256(blob.read_bytes()).hexdigest() == digest
    done = subprocess.run(
        [bpftool, "-j", "btf", "dump", "file", str(blob)], capture_output=True, check=True
    )
    types: list[dict[str, Any]] = json.loads(done.stdout)["types"]
    return [{"id": 0, "kind": "VOID", "name": "void"}, *types]


LEADS_ON = {"TYPEDEF", "CONST", "VOLATILE", "RESTRICT", "TYPE_TAG"}
KINDS = {"INT": "base", "FLOAT": "base", "PTR": "pointer", "ARRAY": "array", "STRUCT": "struct"}
KINDS |= {"UNION": "union", "ENUM": "enum", "ENUM64": "enum", "FUNC_PROTO": "function"}

Place = tuple[str, int, int, str, int | str]
"""(name, first bit, width of a bit-field or 0, kind of its type, name or count of its type)."""


def behind(types: list[dict[str, Any]], type_id: int) -> dict[str, Any]:
    while types[type_id]["kind"] in LEADS_ON:
        type_id = types[type_id]["type_id"]
    return types[type_id]


def wanted_members(types: list[dict[str, Any]], compound: dict[str, Any]) -> Iterator[Place]:
    """These are the members as bpftool tells them, those of anonymous ones in their place."""
    for member in compound["members"]:
        of, at = behind(types, member["type_id"]), member["bits_offset"]
        if member["name"] != "(anon)":
            told = of["nr_elems"] if of["kind"] == "ARRAY" else of["name"]
            yield member["name"], at, member.get("bitfield_size", 0), KINDS[of["kind"]], told
        elif "members" in of:
            for name, inner_at, *rest in wanted_members(types, of):
                yield name, at + inner_at, *rest


def seen_members(user_types: dict[str, Any], name: str, base: int = 0) -> Iterator[Place]:
    """These are the members as the ISF file has them."""
    for member, field in user_types[name]["fields"].items():
        shape, at = field["type"], base + 8 * field["offset"]
        if field.get("anonymous"):
            yield from seen_members(user_types, shape["name"], at)
        elif shape["kind"] == "bitfield":
            of = shape["type"]
            yield member, at + shape["bit_position"], shape["bit_length"], of["kind"], of["name"]
        else:
            yield member, at, 0, shape["kind"], shape.get("count", shape.get("name", "(anon)"))


def test_every_struct_and_union_is_as_bpftool_sees_it(
    isf: Path, described: list[dict[str, Any]], proof_count: Callable[[int], None]
) -> None:
    user_types = load(isf)["user_types"]
    compounds = [one for one in described if one["kind"] in {"STRUCT", "UNION"}]
    times = Counter(one["name"] for one in described if one["kind"] in KINDS)
    compared = 0
    for one in compounds:
        if one["name"] == "(anon)" or times[one["name"]] > 1:
            continue
        seen = user_types[one["name"]]
        if one["name"] == "taint_flag" and "module" not in {m["name"] for m in one["members"]}:
            del seen["fields"]["module"]  # added for Volatility, where the kernel has it no more
        assert (seen["size"], seen["kind"]) == (one["size"], one["kind"].lower())
        pairs = zip(
            wanted_members(described, one), seen_members(user_types, one["name"]), strict=True
        )
        for wanted, found in pairs:
            assert wanted[:4] == found[:4], one["name"]
            if wanted[4] != "(anon)" and times[str(wanted[4])] < 2:
                assert wanted[4] == found[4], one["name"]
        compared += 1
    assert compared > 5000
    proof_count(compared)


def test_every_enumeration_is_as_bpftool_sees_it(
    isf: Path, described: list[dict[str, Any]], proof_count: Callable[[int], None]
) -> None:
    enums = load(isf)["enums"]
    wanted = [one for one in described if one["kind"] in {"ENUM", "ENUM64"}]
    times = Counter(one["name"] for one in wanted)
    named = [one for one in wanted if times[one["name"]] == 1]
    for one in named:
        seen = enums[one["name"]]
        # bpftool shows all values of old BTF, which does not tell their sign, without one.
        assert seen["size"] == one["size"]
        assert {
            name: value % (1 << 64) % (1 << 8 * 4) for name, value in seen["constants"].items()
        } == {value["name"]: value["val"] % (1 << 8 * 4) for value in one["values"]}
    assert len(enums) == len(wanted)
    assert enums["pid_type"]["constants"]["PIDTYPE_TGID"] == 1
    assert enums["rpm_status"]["constants"].get("RPM_INVALID", -1) == -1
    proof_count(len(named))


def test_every_variable_of_the_btf_has_its_type(isf: Path, described: list[dict[str, Any]]) -> None:
    symbols = load(isf)["symbols"]
    variables = [one for one in described if one["kind"] == "VAR" and one["name"] in symbols]
    times = Counter(one["name"] for one in variables)
    for one in variables:
        if times[one["name"]] == 1:
            of = behind(described, one["type_id"])
            assert symbols[one["name"]]["type"]["kind"] == KINDS[of["kind"]]
    assert len(variables) > 200 or not variables  # BTF of 5.10 has none


# ------------------------------------------------------------------------------- and back again: --isf


def members(live: LiveSymbols, user_types: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """These are (struct, member) of some structs; of two of one name either may be meant."""
    btf = live.btf
    assert btf is not None
    for name in sorted(user_types)[::40]:
        record = btf.find_compound(name)
        if record is not None and f"{name}__2" not in user_types:
            yield from ((name, one.name) for one in btf.members(record) if one.name)


@asynchronous
async def test_the_file_answers_as_the_kernel_itself(
    guest: Guest, isf: Path, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        live = machine.guest.kernel.symbols
        assert isinstance(live, LiveSymbols)
        addresses = live.kallsyms.addresses()
        asked = list(members(live, load(isf)["user_types"]))
        wanted = [(live.find_field(of, [name]), live.size_of(of)) for of, name in asked]
        facts = machine.guest.facts()
    async with qvmi.attach(guest.qmp, isf=isf) as machine:
        symbols = machine.guest.kernel.symbols
        assert not isinstance(symbols, LiveSymbols)
        assert {name: symbols.find(name) for name in addresses} == addresses
        seen = [(symbols.find_field(of, [name]), symbols.size_of(of)) for of, name in asked]
        assert seen == wanted
        again = machine.guest.facts()
    for fact in ("release", "banner", "kernel_base", "kernel_slide", "build_id"):
        assert getattr(again, fact) == getattr(facts, fact)
    proof_count(len(addresses) + len(asked))


@asynchronous
async def test_with_the_file_the_guests_own_processes_are_seen(
    guest: Guest, isf: Path, profiles: Path
) -> None:
    async with qvmi.attach(guest.qmp, isf=isf) as machine:
        assert_processes_agree(guest, machine.guest.processes)
        seen = (machine.guest.modules().items, machine.guest.module_symbols().items)
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        assert seen == (machine.guest.modules().items, machine.guest.module_symbols().items)


@asynchronous
async def test_the_file_of_another_build_is_refused_by_both_banners(
    guests: GuestPool, tmp_path: Path
) -> None:
    guest = guests.restore(GuestConfig(kernel="6.1"))
    await save_isf(guest, tmp_path / "this.json.xz", tmp_path)
    document = load(tmp_path / "this.json.xz")
    banner = base64.b64decode(document["symbols"]["linux_banner"]["constant_data"])
    other = banner.replace(b" #1 ", b" #2 ")
    document["symbols"]["linux_banner"]["constant_data"] = base64.b64encode(other).decode()
    path = tmp_path / "other.json"
    path.write_text(json.dumps(document))
    async with qvmi.attach(guest.qmp, isf=path) as machine:
        with pytest.raises(qvmi.UsageError) as refused:
            machine.guest.facts()
    assert str(path) in str(refused.value)
    assert other.decode().rstrip("\n\0") in str(refused.value)
    assert banner.decode().rstrip("\n\0") in str(refused.value)


@asynchronous
async def test_the_file_of_another_kernel_is_refused_by_both_banners(
    guests: GuestPool, tmp_path: Path
) -> None:
    path = tmp_path / "6.1.json"
    older = guests.restore(GuestConfig(kernel="6.1"))
    await save_isf(older, path, tmp_path)
    newer = guests.restore(GuestConfig(kernel="6.12"))
    async with qvmi.attach(newer.qmp, isf=path) as machine:
        with pytest.raises(qvmi.UsageError) as refused:
            machine.guest.facts()
    for guest in (older, newer):
        assert guest.truth().version in str(refused.value)


@asynchronous
async def test_a_file_of_nothing_is_refused_by_name(guests: GuestPool, tmp_path: Path) -> None:
    guest = guests.restore(GuestConfig(kernel="6.1"))
    path = tmp_path / "nothing.json"
    path.write_text("{}")
    async with qvmi.attach(guest.qmp, isf=path) as machine:
        with pytest.raises(CorruptTable, match=r"nothing\.json"):
            machine.guest.facts()


@asynchronous
async def test_the_same_build_gives_the_same_file_wherever_kaslr_put_it(
    guests: GuestPool, tmp_path: Path
) -> None:
    files: dict[int, bytes] = {}
    for append in ("", "nokaslr"):
        guest = guests.restore(GuestConfig(kernel="6.1", append=append))
        path = tmp_path / "guest.json.xz"
        await save_isf(guest, path, tmp_path)
        async with qvmi.attach(guest.qmp, cache=tmp_path) as machine:
            files[machine.guest.facts().kernel_slide] = path.read_bytes()
    moved, in_place = files
    assert moved
    assert not in_place
    assert files[moved] == files[in_place]
