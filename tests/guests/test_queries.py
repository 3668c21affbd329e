"""A query sees a guest however its memory is read, ends when it is told to, and leaves it running."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

import qvmi
from qvmi.addr import Pa
from qvmi.errors import MemoryUnreachable, NotDirect, QueryTimeout, StaleView
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.view import Taken
from tests.asynchronous import asynchronous, until
from tests.guests.agreement import assert_processes_agree, at_rest
from tests.guests.lab import Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool

REMOTE: Final = ("pmemsave", "monitor", "gdbstub")
EVERY: Final = ("shared RAM file", *REMOTE)
REFUSED_S: Final = 3.0
"""A client that waits longer than this for a stub that another one holds is a hang to its user."""
ENDS_S: Final = 20.0
CLOSING_TURNS: Final = 16
"""Turns of the event loop after which the end of a session is cancelled: from the first to past the last."""
SCRATCH: Final = Pa(0x500)
"""Conventional memory that neither the kernel nor this guest's firmware uses after booting."""


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(GuestConfig("6.12"))


def workers() -> list[str]:
    """These are the threads of queries that there are."""
    return [one.name for one in threading.enumerate() if one.name == "qvmi query"]


def read_for_ever(linux: LinuxGuest) -> None:
    """This is a look that never ends by itself."""
    while True:
        linux.kernel.space.read(linux.kernel.banner_address, 64)


# ------------------------------------------------------------------------------------------ what is seen


@pytest.mark.parametrize("source", REMOTE)
def test_processes_are_those_of_proc(
    guest: Guest, profiles: Path, source: str, proof_count: Callable[[int], None]
) -> None:
    with qvmi.attach_sync(guest.qmp, cache=profiles, sources=[source]) as machine:
        assert [one.source for one in machine.machine.memory_ladder if one.used] == [source]
        count = assert_processes_agree(guest, lambda: machine.query(lambda it: it.processes()))
        captured = machine.capture(lambda linux: linux.processes())
        live = machine.query(lambda linux: linux.processes())
    assert at_rest(captured) == at_rest(live)
    assert captured.provenance.taken is Taken.CAPTURED
    assert captured.provenance.pause_s > 0
    assert guest.monitor.running()
    proof_count(count)


@pytest.mark.parametrize("source", EVERY)
@asynchronous
async def test_only_the_gdbstub_stops_the_guest_and_it_is_told_for_how_long(
    guest: Guest, profiles: Path, source: str
) -> None:
    guest.monitor.events.clear()
    async with qvmi.attach(guest.qmp, cache=profiles, sources=[source]) as machine:
        before = machine.stood_still_s
        listing = await machine.query(lambda linux: linux.processes())
        told = listing.provenance
        stood_still_s = machine.stood_still_s - before
    guest.monitor.execute("query-status")
    stops = [event for event in guest.monitor.events if event["event"] == "STOP"]
    if source == "gdbstub":
        assert (told.taken, told.pause_s) == (Taken.CAPTURED, stood_still_s)
        assert stood_still_s > 0
        assert stops
    else:
        assert (told.taken, told.pause_s) == (Taken.LIVE, 0.0)
        assert not stops
    assert guest.monitor.running()


@pytest.mark.parametrize("source", EVERY)
@asynchronous
async def test_a_guest_that_its_owner_paused_stays_paused(
    guest: Guest, profiles: Path, source: str
) -> None:
    guest.monitor.execute("stop")
    async with qvmi.attach(guest.qmp, cache=profiles, sources=[source]) as machine:
        listing = await machine.query(lambda linux: linux.processes())
        assert listing.provenance.pause_s == 0.0
    assert not guest.monitor.running()
    guest.monitor.execute("cont")


@pytest.mark.parametrize("source", REMOTE)
@asynchronous
async def test_what_is_kept_ends_with_the_pause(guest: Guest, profiles: Path, source: str) -> None:
    def read(view: qvmi.View) -> bytes:
        return view.memory.read(SCRATCH, 4)

    def write(value: bytes) -> None:
        with guest.ram_paths[0].open("r+b") as ram:
            ram.seek(SCRATCH)
            ram.write(value)

    async with qvmi.attach(guest.qmp, cache=profiles, sources=[source], discover=False) as machine:
        for value in (b"one.", b"two."):
            write(value)
            assert await machine.query_view(read) == value
        async with machine.paused():
            assert await machine.query_view(read) == b"two."
            write(b"thr.")  # which no guest does that stands still
            assert await machine.query_view(read) == b"two."
        assert await machine.query_view(read) == b"thr."
    assert guest.monitor.running()


@pytest.mark.parametrize("source", REMOTE)
@asynchronous
async def test_within_a_pause_queries_answer_for_it(
    guest: Guest, profiles: Path, source: str
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles, sources=[source]) as machine:
        async with machine.paused():
            first, second = [
                await machine.query(lambda linux: (linux, linux.processes())) for _ in range(2)
            ]
            assert not guest.monitor.running()
        assert first[1].items == second[1].items
        assert first[1].provenance.taken is Taken.PAUSED
        assert 0 < first[1].provenance.pause_s < second[1].provenance.pause_s
        with pytest.raises(StaleView, match="the pause has ended"):
            await machine.query(lambda _: first[0].processes())
    assert guest.monitor.running()


@pytest.mark.parametrize("source", REMOTE)
@asynchronous
async def test_the_event_loop_is_told_to_ask_by_query(
    guest: Guest, profiles: Path, source: str
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles, sources=[source]) as machine:
        for look in (
            lambda: machine.guest,
            lambda: machine.symbols,
            lambda: machine.kernel_space,
            lambda: machine.memory.read(Pa(0), 8),
        ):
            with pytest.raises(NotDirect, match=r"await machine\.query"):
                look()


@asynchronous
async def test_breakpoints_and_queries_share_the_gdbstub(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles, sources=["gdbstub"]) as machine:
        before = await machine.query(lambda linux: linux.processes())
        async with machine.breakpoints("kernel_clone") as hits:
            await asyncio.to_thread(guest.run, "true")
            within = await machine.query(lambda linux: linux.processes())
            await asyncio.to_thread(guest.run, "true")
            assert hits.hits >= 2
        after = await machine.query(lambda linux: linux.processes())
    assert at_rest(before) == at_rest(within) == at_rest(after)
    assert guest.monitor.running()


# ------------------------------------------------------------------------------------------- how it ends


@pytest.mark.parametrize("source", EVERY)
@asynchronous
async def test_the_deadline_ends_a_query_and_the_session_goes_on(
    guest: Guest, profiles: Path, source: str
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles, sources=[source]) as machine:
        for timeout_s in (0.001, 0.05):
            with pytest.raises(QueryTimeout):
                await machine.query(read_for_ever, timeout_s=timeout_s)
            assert not workers()
            assert guest.monitor.running()
        assert await machine.query(lambda linux: linux.processes())


@pytest.mark.parametrize("source", EVERY)
@asynchronous
async def test_a_cancel_at_any_moment_ends_a_query_and_the_session_goes_on(
    guest: Guest, profiles: Path, source: str
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles, sources=[source]) as machine:
        for turn in range(12):
            asking = asyncio.ensure_future(machine.query(read_for_ever))
            await asyncio.sleep(turn * 0.001)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert not workers()
            assert guest.monitor.running()
        assert await machine.query(lambda linux: linux.processes())


@pytest.mark.parametrize("source", EVERY)
@asynchronous
async def test_what_a_look_raises_is_raised(guest: Guest, profiles: Path, source: str) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles, sources=[source]) as machine:
        with pytest.raises(ZeroDivisionError):
            await machine.query(lambda _: 1 // 0)
        with pytest.raises(SystemExit):
            await machine.query(lambda _: sys.exit(1))
    assert guest.monitor.running()


@pytest.mark.parametrize("source", REMOTE)
@asynchronous
async def test_an_attach_that_is_cancelled_leaves_nothing(guest: Guest, source: str) -> None:
    async def attach() -> None:
        async with qvmi.attach(guest.qmp, use_cache=False, sources=[source]):
            pass

    for hundredths in range(8):
        attaching = asyncio.ensure_future(attach())
        await asyncio.sleep(hundredths * 0.01)
        attaching.cancel()
        await asyncio.wait([attaching])
        assert not workers()
        assert guest.monitor.running()
    assert not left_behind()


@pytest.mark.parametrize("source", EVERY)
@asynchronous
async def test_a_session_whose_end_is_cancelled_ends_whole(guest: Guest, source: str) -> None:
    leaving = asyncio.Event()

    async def attach() -> None:
        async with qvmi.attach(guest.qmp, discover=False, sources=[source]):
            leaving.set()

    for turns in range(CLOSING_TURNS):
        leaving.clear()
        attached = asyncio.ensure_future(attach())
        waiting = asyncio.ensure_future(leaving.wait())
        await asyncio.wait([attached, waiting], return_when=asyncio.FIRST_COMPLETED)
        if not leaving.is_set():
            await attached  # raises why
        for _ in range(turns):
            await asyncio.sleep(0)
        attached.cancel()
        await asyncio.wait([attached])
    # QEMU serves one client at a time: were one left, this would wait in vain.
    async with qvmi.attach(guest.qmp, discover=False, sources=[source]):
        assert guest.monitor.running()


@asynchronous
async def test_no_file_is_left_behind(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles, sources=["pmemsave"]) as machine:
        await machine.query(lambda linux: linux.processes())
        (folder,) = left_behind()
        assert folder.stat().st_mode & 0o777 == 0o700
        (file,) = folder.iterdir()
        assert (file.stat().st_mode & 0o777, file.stat().st_size) == (0o600, 0)
    assert not left_behind()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@asynchronous
async def test_a_program_that_is_killed_leaves_nothing_of_the_guest_behind(
    guest: Guest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with asking(guest, "pmemsave") as program:
        assert left_behind()
        os.kill(program.pid, number)
        program.wait()
    await until(lambda: not left_behind(), within_s=ENDS_S)
    assert guest.monitor.running()


def left_behind() -> list[Path]:
    """These are the folders of ours in memory."""
    return list(Path("/dev/shm").glob("qvmi-ram-*"))  # noqa: S108 - where they are made


# ------------------------------------------------------------------------------------ the gdbstub's part


@contextmanager
def holder(stub: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """This is another program that holds a gdbstub."""
    command = [sys.executable, "-c", HOLD, str(stub)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as debugger:
        assert debugger.stdout is not None
        assert debugger.stdout.readline() == b"held\n"
        yield debugger
        debugger.kill()


@contextmanager
def asking(guest: Guest, source: str) -> Iterator["subprocess.Popen[bytes]"]:
    """This is a program in the midst of a query that never ends."""
    command = [sys.executable, "-c", ASK, guest.qmp, source]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"asking\n"
        yield program
        program.kill()


@asynchronous
async def test_a_stub_that_is_busy_is_told_in_time(guest: Guest, tmp_path: Path) -> None:
    stub = tmp_path / "stub"
    guest.monitor.human(f"gdbserver unix:{stub},server=on,wait=off")
    with holder(stub) as debugger:
        async with asyncio.timeout(REFUSED_S):
            with pytest.raises(MemoryUnreachable, match=f"held by.*{debugger.pid}"):
                async with qvmi.attach(guest.qmp, sources=["gdbstub"], gdb=str(stub)):
                    pass
    guest.monitor.human("gdbserver none")
    guest.monitor.execute("cont")


HOLD: Final = """
import socket, sys
with socket.socket(socket.AF_UNIX) as stub:
    stub.connect(sys.argv[1])
    stub.recv(1)
    print("held", flush=True)
    sys.stdin.read()
"""

ASK: Final = """
import asyncio, sys, qvmi
async def ask():
    async with qvmi.attach(sys.argv[1], sources=[sys.argv[2]]) as machine:
        def look(linux):
            linux.processes()
            print("asking", flush=True)
            while True:
                linux.processes()
        await machine.query(look)
asyncio.run(ask())
"""


@asynchronous
async def test_a_program_that_is_killed_in_a_query_leaves_its_guest_running(
    guest: Guest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for turn in range(5):
        with asking(guest, "gdbstub") as program:
            assert not guest.monitor.running()
            await asyncio.sleep(turn * 0.003)
            os.kill(program.pid, signal.SIGKILL)
        await until(guest.monitor.running, within_s=ENDS_S)
        assert guest.run("echo alive") == b"alive\n"
    async with qvmi.attach(guest.qmp, sources=["gdbstub"]) as machine:
        assert await machine.query(lambda linux: linux.processes())
    assert guest.monitor.running()
