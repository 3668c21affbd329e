"""A machine with the memory of a small Windows, and one with Linux: told apart, and answered for.

It is no real Windows: which structures a real one has, no test here knows.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

import qvmi
from qvmi import UnknownGuest
from tests.asynchronous import asynchronous
from tests.command_line import qvmi as qvmi_command
from tests.guests.bare_qemu import BareQemu
from tests.guests.lab import GuestConfig
from tests.guests.pool import GuestPool
from tests.guests.windows_machine import START, windows_machine
from tests.synthetic.windows import AGE, BASE, GUID, WindowsMemory, write_isf


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareQemu]:
    memory = WindowsMemory(start=START)
    memory.add_process(4, b"System")
    memory.add_process(612, b"smss.exe", parent=4, created=133_000_000_000_000_000)
    memory.add_module("ntoskrnl.exe", BASE, 0x1046000)
    folder = tmp_path_factory.mktemp("windows")
    with windows_machine(memory, folder) as qemu:
        yield qemu


@asynchronous
async def test_a_machine_with_windows_is_recognised_and_answered_for(
    windows: BareQemu, tmp_path: Path
) -> None:
    isf = write_isf(tmp_path / "ntkrnlmp.json")
    async with qvmi.attach(windows.qmp, use_cache=False) as machine:
        with pytest.raises(UnknownGuest, match=f"Windows.*{GUID}-{AGE}"):
            machine.guest.processes()
        guest = machine.windows(isf)
        assert (guest.facts().os, guest.facts().kernel_base) == ("windows", BASE)
        assert [(row.pid, row.name) for row in guest.processes()] == [
            *((4, "System"), (612, "smss.exe"))
        ]
        assert [row.name for row in guest.modules()] == ["ntoskrnl.exe"]
        assert guest.processes().provenance.taken == "live"


def test_a_script_gets_the_same_facts_without_symbols(windows: BareQemu) -> None:
    with qvmi.attach_sync(windows.qmp, use_cache=False) as machine:
        facts = machine.windows().facts()
    assert (facts.release, facts.build_id) == ("10.0.19045", f"{GUID}-{AGE}")


def test_info_tells_which_symbols_its_kernel_needs(windows: BareQemu) -> None:
    done = qvmi_command("--qmp", windows.qmp, "--no-cache", "info")
    assert done.returncode == 4
    assert f"ntkrnlmp.pdb {GUID}-{AGE}" in done.stdout + done.stderr


@asynchronous
async def test_a_linux_is_no_windows(guests: GuestPool) -> None:
    guest = guests.restore(GuestConfig(kernel="6.1"))
    async with qvmi.attach(guest.qmp) as machine:
        with pytest.raises(UnknownGuest, match="no Windows kernel"):
            machine.windows()
