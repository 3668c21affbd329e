"""A guest belongs to one test: thawed anew each time, private, and gone when the test is, however it ends."""

import json
import os
import select
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guests.lab import GuestConfig, LabError
from tests.guests.lab.folders import make_folder, sweep_dead_folders
from tests.guests.pool import GuestPool

WAIT_S = 60.0

HOLDER = """
import sys
from tests.guests.lab import GuestConfig, Lab
with Lab().restore(GuestConfig()) as guest:
    print(guest.pid, guest.process.keeper.pid, guest.folder, flush=True)
    sys.stdin.read()
"""


def test_a_restored_guest_runs_on(guests: GuestPool) -> None:
    guest = guests.restore(GuestConfig())
    assert guest.monitor.running()
    earlier = guest.truth().uptime
    assert guest.truth().uptime > earlier


def test_every_restored_guest_goes_on_from_the_same_boot(guests: GuestPool) -> None:
    first, second = guests.restore(GuestConfig()), guests.restore(GuestConfig())
    assert first.truth().boot_id == second.truth().boot_id
    assert first.folder != second.folder


def test_what_one_guest_does_another_does_not_see(guests: GuestPool) -> None:
    first = guests.restore(GuestConfig())
    first.run("echo changed > /tmp/changed")
    assert guests.restore(GuestConfig()).run("cat /tmp/changed").startswith(b"cat: can't open")


def test_a_guest_restored_paused_stands_still(guests: GuestPool) -> None:
    guest = guests.restore(GuestConfig(), paused=True)
    assert not guest.monitor.running()
    registers = guest.monitor.human("info registers -a")
    assert guest.monitor.human("info registers -a") == registers
    guest.monitor.execute("cont")
    assert guest.truth().reporter == 1


def test_its_folder_is_for_its_user_alone_and_goes_with_it(guests: GuestPool) -> None:
    guest = guests.restore(GuestConfig())
    folder = guest.folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    guest.close()
    assert not folder.exists()


def test_closing_twice_is_no_mistake(guests: GuestPool) -> None:
    guest = guests.restore(GuestConfig())
    guest.close()
    guest.close()


def test_a_guest_that_powers_off_is_noticed_and_can_still_be_read(guests: GuestPool) -> None:
    guest = guests.restore(GuestConfig())
    guest.ask("power off")
    assert guest.wait_for_end(WAIT_S)
    assert b'"kind":"end"' in guest.console()


def test_a_killed_guest_is_noticed(guests: GuestPool) -> None:
    guest = guests.restore(GuestConfig())
    guest.kill()
    with pytest.raises(LabError, match="QEMU"):
        guest.monitor.execute("query-status")


@pytest.fixture
def holder(guests: GuestPool) -> "subprocess.Popen[str]":
    """This is another process with a guest of its own; its pid, its keeper's and its folder are printed."""
    guests.restore(GuestConfig())  # so that the other process has only to thaw
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    guests.stack.callback(_end, process)
    return process


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def _said(process: "subprocess.Popen[str]") -> tuple[int, int, Path]:
    assert process.stdout
    qemu, keeper, folder = process.stdout.readline().split()
    return int(qemu), int(keeper), Path(folder)


def _ended(pidfd: int) -> bool:
    ready = select.poll()
    ready.register(pidfd, select.POLLIN)
    try:
        return bool(ready.poll(WAIT_S * 1000))
    finally:
        os.close(pidfd)


def test_kill_9_of_the_test_leaves_no_qemu_and_no_folder(
    holder: "subprocess.Popen[str]",
) -> None:
    qemu, keeper, folder = _said(holder)
    qemu_end, keeper_end = os.pidfd_open(qemu), os.pidfd_open(keeper)
    holder.send_signal(signal.SIGKILL)
    assert _ended(qemu_end)
    assert _ended(keeper_end)
    assert not folder.exists()


def test_kill_9_of_the_keeper_leaves_no_qemu(holder: "subprocess.Popen[str]") -> None:
    qemu, keeper, _ = _said(holder)
    end = os.pidfd_open(qemu)
    os.kill(keeper, signal.SIGKILL)
    assert _ended(end)


def test_a_folder_whose_owner_is_dead_is_swept_and_no_other() -> None:
    mine = make_folder(0)
    try:
        dead = mine.with_name(mine.name.replace(f"-{os.getpid()}-", f"-{_dead_pid()}-"))
        dead.mkdir()
        sweep_dead_folders()
        assert mine.exists()
        assert not dead.exists()
    finally:
        mine.rmdir()


def _dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_says_what_to_do_when_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/tmp")  # noqa: S108 - only its size matters
    with pytest.raises(LabError, match="free some"):
        make_folder(1 << 60)


def test_says_what_qemu_said_when_it_does_not_start(guests: GuestPool) -> None:
    with pytest.raises(LabError, match="no-such-device"):
        guests.boot(GuestConfig(extra=("-device", "no-such-device")))


def test_the_command_prints_where_to_attach_and_ends_with_its_input() -> None:
    command = [sys.executable, "-m", "tests.guests", "boot", "--restore"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdin
        assert process.stdout
        said = process.stdout.readline()
        assert '"qmp": "' in said
        process.stdin.write("run echo hello\n")
        process.stdin.flush()
        assert '"text": "hello\\n"' in process.stdout.readline()
        process.stdin.close()
        assert process.wait(WAIT_S) == 0
        assert not Path(json.loads(said)["folder"]).exists()
