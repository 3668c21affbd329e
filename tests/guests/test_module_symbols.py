"""Symbols and types of modules are those of the guest's own /proc/kallsyms and /sys/kernel/btf."""

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import qvmi
from qvmi.semantics.linux.modules.module_symbols import ModuleSymbol
from qvmi.symbols.btf import Btf
from qvmi.symbols.live import LiveSymbols
from tests.asynchronous import asynchronous
from tests.guests.lab import Guest

LOADABLE = "ifb"
"""A module that the guests carry and do not load."""


@pytest.fixture(scope="module")
def lines(guest: Guest) -> list[str]:
    """These are the lines of modules in /proc/kallsyms; what BPF and ftrace make is left out."""
    text = guest.run("grep -F '[' /proc/kallsyms").decode("ascii")
    loaded = {module.name for module in guest.truth().modules}
    return [line for line in text.splitlines() if line.rpartition("[")[2].rstrip("]") in loaded]


def shown(rows: Iterator[ModuleSymbol]) -> list[str]:
    return [f"{one.address:016x} {one.type} {one.name}\t[{one.module}]" for one in rows]


@asynchronous
async def test_equal_proc_kallsyms_to_the_letter(
    guest: Guest, lines: list[str], profiles: Path, proof_count: Callable[[int], None]
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        listing = machine.guest.module_symbols()
    assert not listing.gaps
    assert shown(iter(listing)) == lines
    assert len(lines) > 500
    proof_count(len(lines))


@asynchronous
async def test_each_module_has_as_many_as_the_guest_counts(guest: Guest, profiles: Path) -> None:
    loaded = {module.name for module in guest.truth().modules}
    counted = guest.kallsyms().module_symbols
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        seen = Counter(one.module for one in machine.guest.module_symbols())
    assert seen == {name: count for name, count in counted.items() if name in loaded}


@asynchronous
async def test_an_address_in_a_module_is_near_the_symbol_it_lies_in(
    guest: Guest, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        # The kernel does not name addresses by the marks of its assembler, either.
        rows = [one for one in machine.guest.module_symbols() if not one.name.startswith("$")]
        places = {one.address for one in rows}
        inside = [one for one in rows if one.type in "tTdDrRbB" and one.address + 1 not in places]
        asked = inside[:: max(1, len(inside) // 40)]
        for one in asked:
            found = machine.guest.nearest(qvmi.Va(one.address + 1))
            assert found is not None, one
            assert (found.address, found.module) == (one.address, one.module)
    proof_count(len(asked))


@asynchronous
async def test_an_address_in_the_kernel_is_near_one_of_its_own(
    guest: Guest, profiles: Path
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        at = machine.symbols.find("schedule")
        assert at is not None
        found = machine.guest.nearest(qvmi.Va(at + 1))
    assert found is not None
    assert (found.name, found.address, found.module) == ("schedule", at, "")


@asynchronous
async def test_an_address_elsewhere_is_near_nothing(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        process = next(iter(machine.guest.processes()))
        rows = machine.guest.modules()
        behind = max(row.address + row.size for row in rows) + (64 << 20)
        elsewhere = (0, 0x400000, process.address, behind, (1 << 64) - 1)
        assert [machine.guest.nearest(qvmi.Va(va)) for va in elsewhere] == [None] * len(elsewhere)


@asynchronous
async def test_symbols_come_and_go_with_their_module(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        before = shown(iter(machine.guest.module_symbols()))
        guest.ask(f"load {LOADABLE}")
        text = guest.run(f"grep -F '[{LOADABLE}]' /proc/kallsyms").decode("ascii")
        loaded = shown(iter(machine.guest.module_symbols()))
        assert loaded == [*text.splitlines(), *before]
        guest.ask(f"unload {LOADABLE}")
        assert shown(iter(machine.guest.module_symbols())) == before


def types_of(btf: Btf) -> list[object]:
    """Everything that a module's BTF says, names and members resolved."""
    found: list[object] = []
    for type_id in btf.own_ids():
        record = btf.type(type_id)
        found.append(record)
        if record.kind.name in {"STRUCT", "UNION"}:
            found.extend(btf.members(record))
    return found


@asynchronous
async def test_types_are_those_of_the_guests_own_sysfs(
    guest: Guest, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    names = set(guest.run("ls /sys/kernel/btf").decode().split()) - {"vmlinux"}
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        symbols = machine.guest.kernel.symbols
        assert isinstance(symbols, LiveSymbols)
        base = symbols.btf
        listing = machine.guest.module_types()
    assert not listing.gaps
    assert {one.name for one in listing} == names
    for one in listing:
        content = base64.b64decode(guest.run(f"base64 /sys/kernel/btf/{one.name}"))
        assert types_of(one.btf) == types_of(Btf(content, base))
    proof_count(len(listing))


@asynchronous
async def test_a_type_of_a_module_refers_to_the_kernels_own(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        listing = machine.guest.module_types()
        if not len(listing):
            assert machine.symbols.find("btf_modules") is None
            return
        btf = {one.name: one.btf for one in listing}["veth"]
    record = btf.find_compound("veth_priv")
    assert record is not None
    peer = next(one for one in btf.members(record) if one.name == "peer")
    device = btf.type(btf.resolved(btf.type(btf.resolved(peer.type_id)).size_or_type))
    assert device.name == "net_device"


@asynchronous
async def test_the_kernels_own_types_are_those_of_its_sysfs(guest: Guest, profiles: Path) -> None:
    digest = guest.run("sha256sum /sys/kernel/btf/vmlinux").decode().split()[0]
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        start, stop = machine.symbols.find("__start_BTF"), machine.symbols.find("__stop_BTF")
        assert start is not None
        assert stop is not None
        assert hashlib.sha256(machine.kernel_space.read(start, stop - start)).hexdigest() == digest
