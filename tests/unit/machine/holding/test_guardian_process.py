"""What the guardian's own process does where a real QEMU cannot be had, as for a machine of libvirt's."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qvmi.machine.holding import guardian_process
from qvmi.machine.holding.guardian import start_guardian
from qvmi.machine.holding.guardian_process import Charge, is_stopped, make_good

FAILS_TWICE = """
import sys
with open(sys.argv[1], "a+") as tries:
    tries.write("x")
    tries.seek(0)
    sys.exit(len(tries.read()) < 3)
"""


def charge_with(command: list[str], *, stopped: bool = True) -> Charge:
    charge = Charge()
    charge.command = command
    charge.stopped = stopped
    return charge


def test_a_command_that_fails_is_tried_until_it_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guardian_process, "COMMAND_PAUSE_S", 0.0)
    tries = tmp_path / "tries"
    make_good(charge_with([sys.executable, "-I", "-S", "-c", FAILS_TWICE, str(tries)]))
    assert tries.read_text() == "xxx"


def test_a_command_that_never_succeeds_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guardian_process, "COMMAND_PAUSE_S", 0.0)
    tries = tmp_path / "tries"
    make_good(charge_with(["sh", "-c", f"printf x >> '{tries}'; exit 1"]))
    assert tries.read_text() == "x" * guardian_process.COMMAND_TRIES


def test_a_machine_that_was_not_stopped_is_left_alone(tmp_path: Path) -> None:
    tries = tmp_path / "tries"
    make_good(charge_with(["touch", str(tries)], stopped=False))
    assert not tries.exists()


def test_tells_a_stopped_process_from_one_that_runs_and_one_that_is_gone() -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        assert not is_stopped(process.pid)
        process.send_signal(19)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        assert is_stopped(process.pid)
        process.kill()
    assert not is_stopped(process.pid)


def children() -> set[str]:
    """This names the processes that this one started and that still run, as the kernel does."""
    threads = Path("/proc/self/task").iterdir()
    return {pid for thread in threads for pid in (thread / "children").read_text().split()}


def test_a_guardian_whose_start_is_cancelled_is_not_left_behind() -> None:
    before = children()

    async def cancel_after(turns: int) -> None:
        starting = asyncio.ensure_future(start_guardian(None, ["true"]))
        for _ in range(turns):
            await asyncio.sleep(0.001)
        starting.cancel()
        starting.cancel()
        await asyncio.wait([starting])
        if not starting.cancelled():
            starting.result().close()

    for turns in range(12):
        asyncio.run(cancel_after(turns))
        assert children() == before
