"""Every program of docs/library.md runs on a real guest, and tells what the guest itself tells."""

import contextlib
import io
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

import qvmi
from tests.guests.disk_lab import disk_guest
from tests.guests.lab import Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool
from tests.repository.tree import ROOT

SECTION: Final = re.compile(r"^## (.+?)$(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
BLOCK: Final = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SOCKET: Final = "/run/vm/qmp.sock"


def programs() -> dict[str, str]:
    """These are the programs of the page, by the section that each stands in."""
    text = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    return {
        title: program for title, body in SECTION.findall(text) for program in BLOCK.findall(body)
    }


PROGRAMS: Final = programs()


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(GuestConfig(kernel="6.1"))


@pytest.fixture(autouse=True)
def _a_place_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def printed(section: str, guest: Guest) -> str:
    """This is what the program of a section prints, run as it stands there."""
    assert SOCKET in PROGRAMS[section]
    code = PROGRAMS[section].replace(SOCKET, guest.qmp)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, f"docs/library.md: {section}", "exec"), {"__name__": "__main__"})  # noqa: S102 - our own page
    return output.getvalue()


def test_no_program_of_the_page_is_left_out_here() -> None:
    text = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    assert text.count("```python\n") == len(PROGRAMS)
    assert set(PROGRAMS) == {
        *("Attach, and list", "One process", "The log", "Memory", "One moment", "Scan", "Dumps"),
        *("Errors", "What happens in a guest", "Disks"),
    }


def test_attaches_and_lists(guest: Guest) -> None:
    truth = guest.settled_truth()
    lines = printed("Attach, and list", guest).splitlines()
    assert lines[0].split()[0] == "running"
    assert lines[0].split()[-1] == truth.release
    listed = {(int(line.split()[0], 16), line.split()[2]) for line in lines[2:-1]}
    assert listed == {(one.address, repr(one.name)) for one in truth.modules}
    assert lines[-1].startswith("taken live at ")


def test_asks_about_one_process(guest: Guest) -> None:
    lines = printed("One process", guest).splitlines()
    maps = guest.run("head -n 3 /proc/1/maps").decode().splitlines()
    mapped = [line.split()[0].replace("0x", "") for line in lines if line.startswith("0x")]
    assert mapped == [re.sub(r"\b0+", "", line.split()[0]) for line in maps]
    assert any(line.startswith("do_") or "schedule" in line for line in lines)


def test_prints_the_log(guest: Guest) -> None:
    assert "Linux version" in printed("The log", guest)


def test_reads_memory(guest: Guest) -> None:
    lines = printed("Memory", guest).splitlines()
    banner = guest.run("cat /proc/version").rstrip(b"\n")
    assert lines[0].startswith(repr(banner)[:-1])
    assert lines[1] == repr(b"\x7fELF")


def test_sees_one_moment(guest: Guest) -> None:
    queried, captured, together = printed("One moment", guest).splitlines()
    assert queried == captured
    listening = guest.settled_truth().lines["/proc/net/tcp"][1:]
    assert queried.count("'127.0.0.1:") >= sum(
        " 0100007F:" in one and " 0A " in one for one in listening
    )
    assert together.split()[0] == "paused"
    assert float(together.split()[-1]) > 0


def test_scans(guest: Guest) -> None:
    *hits, last = printed("Scan", guest).splitlines()
    assert last == "0 gaps"
    assert any("'kernel', 'linux_banner" in hit for hit in hits)
    assert all("b'Linux version '" in hit for hit in hits)


def test_dumps_and_reads_the_dump(guest: Guest, tmp_path: Path) -> None:
    lines = printed("Dumps", guest).splitlines()
    assert lines[0].startswith(f"{(tmp_path / 'guest.core').stat().st_size} bytes; ")
    assert int(lines[1].split()[0]) >= sum(task.leads for task in guest.settled_truth().tasks) // 2


def test_says_what_is_not_there(guest: Guest) -> None:
    assert printed("Errors", guest).startswith("not there: ")


@pytest.mark.parametrize(
    "question",
    [
        *("mounts", "open_files", "sockets", "mappings", "command_lines", "environment"),
        *("credentials", "namespaces", "cgroups", "stack", "user_space"),
    ],
)
def test_a_pid_in_place_of_a_process_is_said_to_be_none(guest: Guest, question: str) -> None:
    with (
        qvmi.attach_sync(guest.qmp) as machine,
        pytest.raises(qvmi.UsageError, match=r"^89 is no process: .*find\(pid=1\)"),
    ):
        getattr(machine.guest, question)(89)


def test_who_stops_listening_to_a_scan_ends_it(guest: Guest) -> None:
    with qvmi.attach_sync(guest.qmp) as machine:
        scan = machine.scan('rule letter { strings: $a = "a" condition: $a }', hits_per_rule=3)
        for _ in scan:
            break
        assert machine.run_state().running


def test_the_program_that_waits_for_events_tells_of_one(guest: Guest) -> None:
    guest.start_storm()
    try:
        lines = printed("What happens in a guest", guest).splitlines()
    finally:
        guest.stop_storm()
    assert lines[0].startswith("ProcessStarted ")
    assert lines[1].startswith("EventAccount(looks=")


def test_lists_disks_and_what_is_on_them(lab: Lab, tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    subprocess.run(["mkfs.ext4", "-q", str(image), "4M"], check=True, capture_output=True)
    with ExitStack() as stack:
        machine = disk_guest(GuestPool(lab, stack))
        file = {"driver": "file", "filename": str(image)}
        machine.plug({"driver": "raw", "node-name": "kept", "file": file}, "disk")
        lines = printed("Disks", machine.guest).splitlines()
    assert lines == ["disk 4194304 can be read", "['ext4']"]
