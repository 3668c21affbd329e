"""What was learned of a kernel is used again, and is not believed where it is wrong."""

import asyncio
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest

import qvmi
from qvmi import Process
from tests.asynchronous import asynchronous
from tests.guests.agreement import assert_processes_agree, at_rest
from tests.guests.lab import Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool
from tests.guests.tampering import guest_ram

CACHED: Final = "kallsyms, found by: profile of this build"
SEARCHED: Final = "kallsyms, found by: tables_by_form"


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(GuestConfig(kernel="6.1"))


@pytest.fixture(scope="module")
def rows(guest: Guest) -> frozenset[Process]:
    """This is what is seen without a cache; other tests compare it with /proc."""
    with qvmi.attach_sync(guest.qmp, use_cache=False) as machine:
        return at_rest(machine.guest.processes())


@pytest.fixture(scope="module")
def learned(guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This is the one file that a first attach leaves behind."""
    return _learn(guest, tmp_path_factory.mktemp("learned"))


@pytest.fixture(scope="module")
def foreign(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This is the same of another kernel."""
    with ExitStack() as stack:
        other = GuestPool(lab, stack).restore(GuestConfig(kernel="6.12"))
        return _learn(other, tmp_path_factory.mktemp("foreign"))


def _learn(guest: Guest, folder: Path) -> Path:
    with qvmi.attach_sync(guest.qmp, cache=folder) as machine:
        machine.guest.processes()
        machine.guest.facts()
    (file,) = folder.iterdir()
    return file


def _how(machine: qvmi.Machine) -> str:
    (source,) = (one.source for one in machine.guest.facts().evidence if "kallsyms" in one.source)
    return source


Understood = Callable[[Path], str]


@pytest.fixture
def understood(guest: Guest, rows: frozenset[Process]) -> Understood:
    """This attaches with a cache, compares what is seen, and says how the kernel was understood."""

    async def attach(cache: Path) -> str:
        async with qvmi.attach(guest.qmp, cache=cache) as machine:
            assert at_rest(machine.guest.processes()) == rows
            return _how(machine)

    return lambda cache: asyncio.run(attach(cache))


def _assert_replaced(understood: Understood, file: Path, wrong: bytes) -> None:
    """This attaches with a wrong file in the cache, and again with what became of it."""
    file.write_bytes(wrong)
    assert understood(file.parent) == SEARCHED
    assert [one.name for one in file.parent.iterdir()] == [file.name]
    assert file.read_bytes() != wrong
    assert understood(file.parent) == CACHED


def test_a_second_attach_uses_the_cached_profile(understood: Understood, learned: Path) -> None:
    before = learned.read_bytes()
    assert understood(learned.parent) == CACHED
    assert learned.read_bytes() == before


@asynchronous
async def test_a_profile_serves_the_same_kernel_at_another_place(
    guest: Guest, learned: Path, lab: Lab, tmp_path: Path
) -> None:
    """The other machine was booted by itself, so its KASLR offset is another."""
    shutil.copy(learned, tmp_path)
    async with qvmi.attach(guest.qmp, cache=tmp_path) as machine:
        here = machine.guest.facts().kernel_base
    with ExitStack() as stack:
        moved = GuestConfig(
            "6.1", "pc", cpus=1, cpu_flags="la57=off", append="nokaslr", ram="memfd"
        )
        other = GuestPool(lab, stack).restore(moved)
        async with qvmi.attach(other.qmp, cache=tmp_path) as machine:
            assert _how(machine) == CACHED
            assert machine.guest.facts().kernel_base != here
            assert_processes_agree(other, machine.guest.processes)


def _resealed(file: Path, change: Callable[[dict[str, Any]], None]) -> bytes:
    """This is the file with something else in it, and a checksum that fits."""
    sealed = json.loads(file.read_bytes())
    change(sealed["profile"])
    body = json.dumps(sealed["profile"], separators=(",", ":"))
    sha256 = hashlib.sha256(body.encode()).hexdigest()
    return f'{{"sha256":"{sha256}","profile":{body}}}'.encode()


def _moved(member: str) -> Callable[[dict[str, Any]], None]:
    def change(profile: dict[str, Any]) -> None:
        profile["fields"][f"task_struct.{member}"][1] += 8

    return change


def _other_address(name: str) -> Callable[[dict[str, Any]], None]:
    def change(profile: dict[str, Any]) -> None:
        profile["image_symbols"][name] += 64

    return change


def _no_version(profile: dict[str, Any]) -> None:
    profile["version"] += 1


CHANGES: Final = {
    "tasks-moved": _moved("tasks"),
    "pid-moved": _moved("pid"),
    "comm-moved": _moved("comm"),
    "tgid-moved": _moved("tgid"),
    "init-task-elsewhere": _other_address("init_task"),
    "of-another-version": _no_version,
}
"""What a file may say whose checksum is right."""

DAMAGES: Final[dict[str, Callable[[bytes], bytes]]] = {
    "empty": lambda _: b"",
    "cut": lambda data: data[: len(data) // 2],
    "one-bit": lambda data: data[:-99] + bytes([data[-99] ^ 1]) + data[-98:],
    "not-json": lambda data: b"\xff" * len(data),
    "deep": lambda _: b"[" * 100_000,
}
"""What may have become of a file."""


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_wrong_profile_is_noticed_and_replaced(
    understood: Understood, learned: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    _assert_replaced(understood, tmp_path / learned.name, _resealed(learned, change))


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_profile_is_noticed_and_replaced(
    understood: Understood, learned: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    _assert_replaced(understood, tmp_path / learned.name, damage(learned.read_bytes()))


def test_another_kernels_profile_is_noticed_and_replaced(
    understood: Understood, learned: Path, foreign: Path, tmp_path: Path
) -> None:
    _assert_replaced(understood, tmp_path / learned.name, foreign.read_bytes())


def test_what_a_lying_guest_taught_is_not_believed_of_an_honest_one(
    rows: frozenset[Process], understood: Understood, lab: Lab, tmp_path: Path
) -> None:
    """The liar runs the same build, so that both have one profile, and calls each uid a gid."""
    with ExitStack() as stack:
        liar = GuestPool(lab, stack).restore(GuestConfig("6.1"), paused=True)
        asyncio.run(_swap_names(liar, b"uid", b"gid"))
        with qvmi.attach_sync(liar.qmp, cache=tmp_path) as machine:
            lies = {row.name: (row.uid, row.gid) for row in machine.guest.processes()}
    assert lies["raised-uid"] == (1002, 1001)
    understood(tmp_path)
    assert {(row.uid, row.gid) for row in rows if row.name == "raised-uid"} == {(1001, 1002)}


async def _swap_names(guest: Guest, one: bytes, other: bytes) -> None:
    """This exchanges two names of members in the types of a guest that stands still."""
    async with qvmi.attach(guest.qmp, use_cache=False) as machine:
        start, stop = (machine.symbols.find(f"__{end}_BTF") for end in ("start", "stop"))
        assert start is not None
        assert stop is not None
        first = machine.kernel_space.translate(start)
        types = machine.kernel_space.read(start, stop - start)
    with guest_ram(guest) as ram:
        for old, new in ((one, other), (other, one)):
            assert types.count(b"\0%s\0" % old) == 1
            ram.write(qvmi.Pa(first + types.index(b"\0%s\0" % old) + 1), new)


@asynchronous
async def test_a_cache_that_cannot_be_written_costs_nothing_else(
    guest: Guest, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    async with qvmi.attach(guest.qmp, cache=tmp_path / "file" / "folder") as machine:
        assert machine.guest.processes()
