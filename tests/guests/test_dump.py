"""A dump holds what the guest held at one moment, and other programs read it as if QEMU had made it.

The oracles are drgn and stock Volatility, which read nothing of ours but the file, and the RAM file.
"""

import asyncio
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import drgn
import pytest

import qvmi
from qvmi.errors import UsageError
from qvmi.view import Taken
from tests.asynchronous import asynchronous
from tests.guests.lab import KERNELS, Guest, GuestConfig
from tests.guests.pool import GuestPool
from tests.guests.stock_volatility import VOLATILITY_S, save_isf, volatility
from tests.guests.x86_64_vcpus import x86_64_vcpus
from tests.proofs import proof_size

MIB = 1 << 20
GDB_S = 60
STOCK_KERNELS = tuple(KERNELS)[:: proof_size(ci=len(KERNELS) - 1, full=1)]
"""The oldest and the newest; that stock Volatility takes the symbols of each is seen elsewhere."""
LOW_END = 0xA_0000
"""Up to there and from 1 MiB on RAM is plain; the chipset shows other things in between."""


def gdb_sees(core: Path, expression: str) -> list[int]:
    """This is the value of an expression for each thread of a core file, by gdb."""
    printing = f'thread apply all -ascending -s -q printf "value %lu\\n", {expression}'
    command = ["gdb", "-nx", "-batch", "-core", str(core), "-ex", printing]
    done = subprocess.run(command, capture_output=True, text=True, timeout=GDB_S, check=True)
    return [int(value) for value in re.findall(r"^value (\d+)$", done.stdout, re.MULTILINE)]


@asynchronous
async def test_a_dump_holds_all_memory_and_the_guest_runs_on(guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "core"
    async with qvmi.attach(guest.qmp) as machine:
        async with machine.paused() as view:
            dump = await machine.dump(path)
            ram = guest.ram_paths[0].read_bytes()
            facts = machine.guest.facts()
        assert dump.provenance.taken is Taken.CAPTURED
        assert dump.provenance.pause_s > 0
    assert guest.monitor.running()
    program = drgn.Program()
    program.set_core_dump(path)
    for start, end in ((0, LOW_END), (MIB, min(len(ram), 2 << 30))):
        for at in range(start, end, 16 * MIB):
            size = min(16 * MIB, end - at)
            assert program.read(at, size, physical=True) == ram[at : at + size]
    assert program.flags & drgn.ProgramFlags.IS_LINUX_KERNEL
    assert program["UTS_RELEASE"].string_().decode() == facts.release
    vcpus = x86_64_vcpus(view.vcpus)
    assert gdb_sees(path, "$rip") == [vcpu.rip for vcpu in vcpus]
    assert gdb_sees(path, "$rsp") == [vcpu.rsp for vcpu in vcpus]
    assert gdb_sees(path, "$fs_base") == [vcpu.fs_base for vcpu in vcpus]
    assert path.stat().st_blocks * 512 <= dump.data_size + MIB
    assert dump.size > len(ram) > dump.data_size
    assert path.stat().st_mode & 0o777 == 0o600


@asynchronous
async def test_a_live_dump_stops_nobody_and_says_so(guest: Guest, tmp_path: Path) -> None:
    guest.monitor.events.clear()
    async with qvmi.attach(guest.qmp) as machine:
        dump = await machine.dump(tmp_path / "core", live=True)
    assert (dump.provenance.taken, dump.provenance.pause_s) == (Taken.LIVE, 0.0)
    assert guest.monitor.running()
    assert not [event["event"] for event in guest.monitor.events]


@pytest.mark.timeout(2 * VOLATILITY_S)
@pytest.mark.parametrize("kernel", STOCK_KERNELS)
@asynchronous
async def test_stock_volatility_lists_the_processes_of_a_dump(
    guests: GuestPool, kernel: str, tmp_path: Path, proof_count: Callable[[int], None]
) -> None:
    guest = guests.restore(GuestConfig(kernel=kernel, cpu_flags="la57=off"))
    folder = tmp_path / "symbols"
    (folder / "linux").mkdir(parents=True)
    await save_isf(guest, folder / "linux" / "guest.json.xz", tmp_path)
    async with qvmi.attach(guest.qmp) as machine, machine.paused():
        await machine.dump(tmp_path / "core")
        exact = machine.guest.processes()
    (seen,) = volatility(tmp_path / "core", folder, tmp_path / "caches", "linux.pslist")
    assert not exact.gaps
    assert {(row["PID"], row["PPID"]) for row in seen} == {
        (process.pid, process.ppid) for process in exact if process.state != "Z"
    }
    proof_count(len(seen))


# ------------------------------------------------------------------------------- what can go wrong


@pytest.mark.parametrize(
    ("path", "words"),
    [("", "is a folder"), ("no/such/core", "No such file"), ("file/core", "Not a directory")],
)
@asynchronous
async def test_a_file_that_cannot_be_written_is_told_before_anything_is_stopped(
    guest: Guest, tmp_path: Path, path: str, words: str
) -> None:
    (tmp_path / "file").touch()
    guest.monitor.events.clear()
    async with qvmi.attach(guest.qmp, discover=False) as machine:
        with pytest.raises(UsageError, match=words):
            await machine.dump(tmp_path / path)
    assert guest.monitor.running()
    assert not guest.monitor.events


@pytest.mark.parametrize("kind", ["device", "pipe", "socket", "symbolic link"])
def test_what_is_no_file_is_refused_and_stays_what_it_is(
    guest: Guest, tmp_path: Path, kind: str
) -> None:
    path = Path("/dev/null") if kind == "device" else tmp_path / "place"
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            listener.bind(str(path))
        elif kind == "symbolic link":
            (tmp_path / "file").write_text("what was there")
            path.symlink_to("file")
        before = path.lstat()
        guest.monitor.events.clear()
        with (
            qvmi.attach_sync(guest.qmp) as machine,
            pytest.raises(UsageError, match=f"{path} is a {kind}"),
        ):
            machine.dump(path)
    assert (path.lstat().st_mode, path.lstat().st_ino) == (before.st_mode, before.st_ino)
    assert not guest.monitor.events
    assert len(list(tmp_path.iterdir())) == {"device": 0, "symbolic link": 2}.get(kind, 1)


@asynchronous
async def test_a_dump_that_is_cancelled_leaves_what_was_there(guest: Guest, tmp_path: Path) -> None:
    path, cancelled = tmp_path / "core", 0
    async with qvmi.attach(guest.qmp, discover=False) as machine:
        started = time.monotonic()
        await machine.dump(path)
        whole_s = time.monotonic() - started
        for share in (0, 40, 70, 85, 93, 97, 100, 103):
            path.write_bytes(b"what was there")
            dumping = asyncio.ensure_future(machine.dump(path))
            await asyncio.sleep(whole_s * share / 100)
            dumping.cancel()
            await asyncio.wait([dumping])
            cancelled += dumping.cancelled()
            assert guest.monitor.running()
            assert (path.read_bytes() == b"what was there") is dumping.cancelled()
            assert os.listdir(tmp_path) == ["core"]  # noqa: PTH208 - that would block, says another rule
    assert cancelled


def test_a_disk_without_room_is_told_with_figures(
    guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs(tmp_path)
    full = os.statvfs_result((*real[:4], 10, *real[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    with (
        qvmi.attach_sync(guest.qmp) as machine,
        pytest.raises(UsageError, match=r"needs \d+ MiB, the disk has \d+ MiB left"),
    ):
        machine.dump(tmp_path / "core")
    assert not list(tmp_path.iterdir())
