"""Windows in memory written by hand: recognised by its kernel, answered for by Volatility's plugins."""

from pathlib import Path

import pytest

from qvmi.errors import NotAnswered, StaleView, SymbolsError, UnknownGuest, UsageError
from qvmi.semantics.selection import Choices, select, select_windows
from qvmi.semantics.windows.guest import NO_ID
from tests.synthetic.windows import AGE, BASE, GUID, NT, WindowsMemory, write_isf

TEN_MINUTES = 600 * 10_000_000
"""Before the clock of `WindowsMemory`, which has run for an hour."""
NOW = 133_000_000_000_000_000


@pytest.fixture
def isf(tmp_path: Path) -> Path:
    return write_isf(tmp_path / "ntkrnlmp.json")


def test_facts_need_no_symbols() -> None:
    facts = select_windows(WindowsMemory().view()).facts()
    assert (facts.os, facts.release, facts.uptime_s) == ("windows", "10.0.19045", 3600.0)
    assert (facts.kernel_base, facts.page_table_root) == (BASE, 0x1000)
    assert facts.build_id == f"{GUID}-{AGE}"
    assert any("IDT gate 0" in one.source for one in facts.evidence)


def test_a_guest_that_is_no_linux_is_said_to_be_windows_with_the_symbols_it_needs() -> None:
    with pytest.raises(UnknownGuest, match=f"Windows.*ntkrnlmp.pdb {GUID}-{AGE}") as caught:
        select(WindowsMemory().view(), Choices())
    assert any("Windows 10.0.19045" in one for one in caught.value.evidence)


def test_processes_are_those_of_the_kernels_list(isf: Path) -> None:
    memory = WindowsMemory()
    first = memory.add_process(4, b"System")
    memory.add_process(612, b"\xff<b>.exe", parent=4, created=NOW - TEN_MINUTES)
    listing = select_windows(memory.view(), isf).processes()
    system, other = listing
    assert (system.pid, system.ppid, system.address) == (4, 0, first)
    assert (system.name, system.kernel_thread) == ("System", True)
    assert (other.ppid, other.uid, other.gid, other.kernel_thread) == (4, NO_ID, NO_ID, False)
    assert other.start_time_s == pytest.approx(3000.0)
    assert other.name.endswith("<b>.exe")
    assert listing.gaps == ()
    assert listing.provenance.taken == "paused"


def test_modules_are_those_of_the_kernels_list(isf: Path) -> None:
    memory = WindowsMemory()
    at = memory.add_module("ntoskrnl.exe", BASE, 0x1046000)
    (row,) = select_windows(memory.view(), isf).modules()
    assert (row.name, row.address, row.size) == ("ntoskrnl.exe", BASE, 0x1046000)
    assert row.struct_address == at


def test_a_list_that_is_a_loop_ends(isf: Path) -> None:
    memory = WindowsMemory()
    first, second = memory.add_process(4, b"System"), memory.add_process(8, b"b")
    memory.write(second + 0x10, (first + 0x10).to_bytes(8, "little"))
    assert len(select_windows(memory.view(), isf).processes()) == 2


def test_without_symbols_it_is_said_which_are_needed() -> None:
    guest = select_windows(WindowsMemory().view())
    with pytest.raises(UsageError, match=f"ntkrnlmp.pdb {GUID}-{AGE}"):
        guest.processes()


@pytest.mark.parametrize(("guid", "age"), [("0" * 32, AGE), (GUID, AGE + 1)])
def test_symbols_of_another_build_are_refused(guid: str, age: int, tmp_path: Path) -> None:
    other = write_isf(tmp_path / "other.json", guid=guid, age=age)
    with pytest.raises(SymbolsError, match=f"the kernel that runs of ntkrnlmp.pdb {GUID}-{AGE}"):
        select_windows(WindowsMemory().view(), other).processes()


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\0", b'{"metadata": {"format": "6.2.0"}}'])
def test_a_file_that_is_no_symbol_file_is_said_so(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(SymbolsError, match="is no symbol file"):
        select_windows(WindowsMemory().view(), path).processes()


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no symbol file"):
        select_windows(WindowsMemory().view(), tmp_path / "none.json").processes()


@pytest.mark.parametrize(
    ("question", "plugin"),
    [("open_files", "windows.handles.Handles"), ("sockets", "windows.netscan.NetScan")],
)
def test_what_is_not_answered_names_the_plugin_that_may(question: str, plugin: str) -> None:
    guest = select_windows(WindowsMemory().view())
    with pytest.raises(NotAnswered, match=plugin) as caught:
        getattr(guest, question)()
    assert caught.value.question == question


def test_a_plugin_of_linux_is_refused(isf: Path) -> None:
    guest = select_windows(WindowsMemory().view(), isf)
    with pytest.raises(UsageError, match="not for Windows"):
        guest.volatility("linux.pslist.PsList")


def test_another_kernel_makes_the_view_stale(isf: Path) -> None:
    memory = WindowsMemory()
    guest = select_windows(memory.view(), isf)
    memory.write(BASE, b"\0\0")
    with pytest.raises(StaleView):
        guest.facts()


@pytest.mark.parametrize("pdb", [b"win32k.pdb", b"", b"n" * 300])
def test_an_image_that_is_no_kernel_is_not_taken_for_one(pdb: bytes) -> None:
    with pytest.raises(UnknownGuest):
        select_windows(WindowsMemory(pdb=pdb).view())


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0x3C, 0xFFFF_FFFF),  # e_lfanew
        (NT, 0),  # the signature
        (NT + 4, 0x014C),  # of 32 bits
        (NT + 24 + 56, 0xFFFF_FFFF),  # SizeOfImage
        (NT + 24 + 108, 0),  # no directories
        (NT + 24 + 112 + 48, 0xFFFF_FFF0),  # the debug directory
        (NT + 24 + 112 + 52, 0),  # its size
        (0x3000 + 28 + 20, 0xFFFF_FFF0),  # AddressOfRawData
        (0x3100, 0),  # RSDS
    ],
)
def test_headers_that_lie_are_no_kernel(place: int, value: int) -> None:
    memory = WindowsMemory()
    memory.write(BASE + place, value.to_bytes(4, "little"))
    with pytest.raises(UnknownGuest):
        select_windows(memory.view())


@pytest.mark.parametrize("gate", [0, 0x1000, 0xFFFF_FFFF_FFFF_FFFF, BASE - 1, BASE + (1 << 30)])
def test_a_gate_that_leads_elsewhere_is_no_kernel(gate: int) -> None:
    memory = WindowsMemory()
    memory.set_gate(gate)
    with pytest.raises(UnknownGuest):
        select_windows(memory.view())
