"""A dump is asked like a live guest, and says that it is none."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import qvmi
from qvmi.addr import Pa
from qvmi.errors import MemoryFault, NotADump, QvmiError, UnknownGuest, UsageError
from qvmi.view import Taken
from tests.synthetic.dumps import avml, elf_core, lime
from tests.synthetic.guest import MIB, RAM_SIZE, Guest

WRITTEN_AT = 1_700_000_000.0


@pytest.fixture
def ram() -> bytes:
    guest = Guest()
    init = guest.kernel.add_process(1, b"init")
    guest.kernel.add_process(70, b"seventy", parent=init)
    return guest.ram.read(Pa(0), RAM_SIZE)


@pytest.fixture
def raw(ram: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "ram"
    path.write_bytes(ram)
    os.utime(path, (WRITTEN_AT, WRITTEN_AT))
    return path


def names(path: Path) -> list[str]:
    with qvmi.open_dump(path, use_cache=False) as dump:
        return [process.name for process in dump.guest.processes()]


def test_raw_ram_lists_its_processes(raw: Path) -> None:
    assert names(raw) == ["init", "seventy"]


@pytest.mark.parametrize("write", [elf_core, lime])
def test_each_form_lists_the_same(ram: bytes, tmp_path: Path, write: Callable[..., Path]) -> None:
    assert names(write(tmp_path / "dump", {0: ram})) == ["init", "seventy"]


def test_every_answer_says_that_it_is_of_a_dump_and_of_when(raw: Path) -> None:
    with qvmi.open_dump(raw, use_cache=False) as dump:
        provenance = dump.guest.processes().provenance
        assert dump.view.provenance == provenance
        assert dump.view.vcpus == ()
        assert dump.facts.at == WRITTEN_AT
    assert (provenance.taken, provenance.at, provenance.pause_s) == (Taken.DUMP, WRITTEN_AT, 0.0)


def test_a_walk_and_a_capture_see_the_same(raw: Path) -> None:
    with qvmi.open_dump(raw, use_cache=False) as dump:
        assert dump.capture(lambda guest: guest.processes()) == dump.guest.processes()


def test_the_file_is_not_changed_and_nothing_can_be_read_afterwards(raw: Path, ram: bytes) -> None:
    raw.chmod(0o400)
    with qvmi.open_dump(raw, use_cache=False) as dump:
        guest = dump.guest
    assert raw.read_bytes() == ram
    with pytest.raises(MemoryFault):
        guest.processes()


def test_what_is_learned_of_a_kernel_is_kept(raw: Path, tmp_path: Path) -> None:
    for source in ("tables_by_form", "profile of this build"):
        with qvmi.open_dump(raw, cache=tmp_path / "cache") as dump:
            assert any(source in one.source for one in dump.guest.facts().evidence)
            dump.guest.processes()


def test_a_cache_that_cannot_be_written_costs_nothing_but_a_warning(
    raw: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with qvmi.open_dump(raw, cache=tmp_path / "file" / "cache") as dump:
        assert dump.guest.processes()
    assert "is not kept" in caplog.text


def test_memory_without_a_kernel_can_be_read_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "ram").write_bytes(b"memory".ljust(MIB, b"\0"))
    with qvmi.open_dump(tmp_path / "ram", use_cache=False) as dump:
        assert dump.memory.read(Pa(0), 6) == b"memory"
        with pytest.raises(UnknownGuest, match="no Linux kernel found"):
            dump.guest.processes()
        with pytest.raises(UnknownGuest):
            dump.symbols.find("init_task")


def test_raw_ram_whose_bytes_lie_elsewhere_is_refused_with_the_way_out(
    ram: bytes, tmp_path: Path
) -> None:
    """The file has more RAM than the kernel knows of: some of it must lie where nobody has looked."""
    path = tmp_path / "ram"
    path.write_bytes(ram)
    os.truncate(path, RAM_SIZE + 256 * MIB)
    with qvmi.open_dump(path, use_cache=False) as dump:
        with pytest.raises(UnknownGuest, match=r"--raw-ram SIZE") as caught:
            dump.guest.processes()
        assert any(f"0x0 to {RAM_SIZE:#x}" in line for line in caught.value.evidence)
    with qvmi.open_dump(path, use_cache=False, below_4g=RAM_SIZE) as dump:
        assert len(dump.guest.processes()) == 2


def test_raw_ram_is_raw_whatever_the_guest_wrote_at_address_0(raw: Path) -> None:
    with raw.open("r+b") as file:
        file.write(b"KDUMP   ")
    with pytest.raises(NotADump, match="--raw-ram auto"), qvmi.open_dump(raw, use_cache=False):
        pass
    with qvmi.open_dump(raw, use_cache=False, raw=True) as dump:
        assert len(dump.guest.processes()) == 2


@pytest.mark.parametrize("below_4g", [0, -4096])
def test_a_machine_without_ram_below_4_gib_is_refused(raw: Path, below_4g: int) -> None:
    with (
        pytest.raises(UsageError, match="a machine has some"),
        qvmi.open_dump(raw, below_4g=below_4g),
    ):
        pass


def test_an_avml_file_is_decompressed_as_it_is_read(ram: bytes, tmp_path: Path) -> None:
    small = {at: ram[at : at + 65536] for at in range(0, 2 * 65536, 65536)}
    with qvmi.open_dump(avml(tmp_path / "dump", small, size=65536), use_cache=False) as dump:
        assert dump.memory.read(Pa(65530), 12) == ram[65530 : 65530 + 12]
        assert dump.facts.form == "AVML"
        with pytest.raises(QvmiError):
            dump.guest.processes()


def test_an_isf_file_of_another_kernel_is_told(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "isf.json").write_text("{}")
    with (
        qvmi.open_dump(raw, use_cache=False, isf=tmp_path / "isf.json") as dump,
        pytest.raises(QvmiError, match=r"isf\.json"),
    ):
        dump.guest.processes()
