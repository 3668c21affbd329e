"""A dump of an aarch64 guest, in every form, tells what the guest told of itself and what is seen live."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

import qvmi
from qvmi import GuestOS, Listing, UnknownGuest
from qvmi.addr import Pa
from tests.command_line import qvmi as qvmi_command
from tests.command_line import qvmi_document
from tests.guests.aarch64_guests import NARROW, NOTE, RAM_START, aarch64
from tests.guests.lab import Lab, Truth
from tests.guests.pool import GuestPool
from tests.guests.test_dump_sources import (
    MIB,
    Stopped,
    as_avml,
    as_lime,
    as_raw_ram,
    assert_equals_truth,
    by_qemu,
    by_qvmi,
    copy_of_ram,
    places,
    stopped,
)

WRITERS: Final = (by_qemu, by_qvmi, as_raw_ram, as_lime, as_avml)
OF_ALL: Final = ("mounts", "open_files", "sockets", "command_lines", "log")
OF_ONE: Final = ("mounts", "open_files", "mappings", "command_lines", "environment")


@pytest.fixture(
    scope="module",
    params=[aarch64(), aarch64("7.x-arm64", NARROW)],
    ids=["6.12", "7.x, 48 bits"],
)
def still(
    lab: Lab, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stopped]:
    with ExitStack() as stack:
        guest = GuestPool(lab, stack).restore(request.param)
        yield stopped(guest, tmp_path_factory.mktemp("dumps"))


@pytest.fixture(scope="module")
def core(still: Stopped) -> tuple[Path, Truth]:
    return by_qvmi(still), still.truth


@pytest.fixture(autouse=True)
def _a_cache_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "dump-cache"))


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_a_dump_tells_what_the_guest_told(
    still: Stopped, write: Callable[[Stopped], Path], proof_count: Callable[[int], None]
) -> None:
    path = write(still)
    with qvmi.open_dump(path, use_cache=False) as dump:
        proof_count(assert_equals_truth(dump, still.truth))
        facts = dump.guest.facts()
        assert facts.architecture == "aarch64"
        assert "VMCOREINFO" in facts.evidence[0].source
        with still.ram.open("rb") as ram:
            for at in places(dump):
                ram.seek(at - RAM_START)
                assert dump.memory.read(Pa(at), 4096) == ram.read(4096)
    if path != still.ram:
        path.unlink()


def views_of(guest: GuestOS) -> dict[str, Listing[object]]:
    """These are the questions that are asked of a dump in each way."""
    init = next(row for row in guest.processes() if row.pid == 1)
    of_all = {name: getattr(guest, name)() for name in OF_ALL}
    return of_all | {f"{name} of 1": getattr(guest, name)(init) for name in OF_ONE}


def test_each_view_of_a_dump_is_that_of_the_guest_that_still_stands_there(
    still: Stopped, core: tuple[Path, Truth], proof_count: Callable[[int], None]
) -> None:
    with qvmi.attach_sync(still.guest.qmp) as machine:
        live = views_of(machine.guest)
    with qvmi.open_dump(core[0]) as dump:
        seen = views_of(dump.guest)
    for name, listing in seen.items():
        assert listing.items == live[name].items, name
        assert listing.items, name
        assert (listing.gaps, live[name].gaps) == ((), ())
        assert listing.provenance.taken == "dump"
    proof_count(sum(len(listing) for listing in seen.values()))


def test_the_commands_look_at_a_dump_as_at_the_guest(
    still: Stopped, core: tuple[Path, Truth]
) -> None:
    for view in (("ps",), ("vol", "linux.lsof.Lsof")):
        live = qvmi_document("--qmp", still.guest.qmp, *view)
        seen = qvmi_document("--dump", str(core[0]), *view)
        assert (seen["items"], seen["gaps"]) == (live["items"], [])
        assert seen["provenance"]["taken"] == "dump"
    user = qvmi_document("--dump", str(core[0]), "read", "--user", "1", "0x400000", "4")
    assert bytes.fromhex(user["data"]) == b"\x7fELF"
    facts = qvmi_document("--dump", str(core[0]), "info")
    assert facts["guest"]["release"] == still.truth.release


def test_without_a_note_it_is_said_what_was_looked_for(still: Stopped) -> None:
    path = copy_of_ram(still)
    data = path.read_bytes()
    with path.open("r+b") as file:
        at = data.find(NOTE)
        while at >= 0:
            file.seek(at)
            file.write(b"x" * len(NOTE))
            at = data.find(NOTE, at + 1)
    with (
        qvmi.open_dump(path, use_cache=False) as dump,
        pytest.raises(UnknownGuest, match="neither VMCOREINFO nor any page") as caught,
    ):
        dump.guest.processes()
    assert any("no note is of an aarch64 kernel" in line for line in caught.value.evidence)
    done = qvmi_command("--dump", str(path), "ps")
    assert (done.returncode, done.stdout) == (4, "")
    path.unlink()


def test_raw_ram_that_is_more_than_the_kernel_knows_of_is_refused(still: Stopped) -> None:
    path = copy_of_ram(still)
    size = path.stat().st_size
    os.truncate(path, size + 256 * MIB)
    with (
        qvmi.open_dump(path, use_cache=False) as dump,
        pytest.raises(UnknownGuest, match="how the file's bytes lie") as caught,
    ):
        dump.guest.processes()
    mapped = f"maps RAM at {RAM_START:#x} to {RAM_START + size:#x}"
    assert any(mapped in line for line in caught.value.evidence)
    path.unlink()
