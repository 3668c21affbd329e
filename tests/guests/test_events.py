"""What is told of a guest's doings is what the guest did, and what was missed is counted to the last fork."""

import asyncio
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from struct import Struct
from typing import Any, Final

import pytest

import qvmi
from qvmi.errors import MachineGone, NotDirect, UsageError
from qvmi.policy import OBSERVE, Grant
from qvmi.semantics.rows.events import (
    EventKind,
    GuestChanged,
    Missed,
    ModuleLoaded,
    ModuleUnloaded,
    Mounted,
    NotSeen,
    ProcessExeced,
    ProcessExited,
    ProcessStarted,
    SocketListening,
    Unmounted,
    What,
)
from qvmi.view import Taken
from tests.asynchronous import asynchronous, until
from tests.command_line import QVMI, environment
from tests.guests.aarch64_guests import aarch64
from tests.guests.collected_events import Watching, forks_counted, watching
from tests.guests.lab import Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool
from tests.guests.rootkit import hide_process
from tests.proofs import proof_size
from tests.repository.tree import ROOT

CONFIGS: Final = [GuestConfig("6.1"), GuestConfig("7.x"), aarch64()]
OTHERS: Final = [GuestConfig("5.10"), GuestConfig("6.12")][: proof_size(ci=0, full=2)]
SHORT_LIVES: Final = 5
TRIES: Final = 20
MOST_OTHERS: Final = 10
"""Forks of the shells that a test asks with, and of kernel workers."""
NOTICED_S: Final = 60.0
LIE: Final = 1_000_000
NUMBER, CURSOR = Struct("<Q"), Struct("<I")


@pytest.fixture(scope="module", params=[*CONFIGS, *OTHERS], ids=lambda config: config.kernel)
def guest(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """This is a running guest; of some kernels in a whole proof alone."""
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(request.param)


@pytest.fixture(scope="module")
def plain(lab: Lab) -> Iterator[Guest]:
    """This is one for what is the same of every kernel."""
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(GuestConfig("6.1"))


@pytest.fixture(scope="module")
def shell(guest: Guest) -> Callable[[str], Any]:
    """This runs a command in the guest while the event loop goes on."""

    async def run(command: str) -> str:
        return (await asyncio.to_thread(guest.run, command)).decode("latin-1")

    return run


def pids_in(text: str) -> list[int]:
    return [int(word) for word in text.split()]


# ------------------------------------------------------------------------------------------ each kind


ORPHANAGE: Final = (
    'rm -f /tmp/go; sh -c \'sh -c "while [ ! -e /tmp/go ]; do sleep 0.1; done; exit 3" >/dev/null 2>&1 &'
    " echo $! $$; exec sleep 1000 >/dev/null 2>&1' &"
)
"""A child that ends when it is told to, and a parent that never asks for its status."""


@asynchronous
async def test_a_process_is_seen_from_its_fork_to_its_end(
    guest: Guest, profiles: Path, shell: Callable[[str], Any]
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine, watching(machine) as seen:
        child, parent = pids_in(await shell(ORPHANAGE))
        started = await seen.first(ProcessStarted, lambda event: event.process.pid == child)
        execed = await seen.first(ProcessExeced, lambda event: event.process.pid == child)
        await shell("touch /tmp/go")
        exited = await seen.first(ProcessExited, lambda event: event.process.pid == child)
        await shell(f"kill {parent}")
        await seen.first(ProcessExited, lambda event: event.process.pid == parent)
    assert (started.process.ppid, started.process.uid) == (parent, 0)
    assert execed.count >= 1
    assert execed.process.start_time_s == started.process.start_time_s
    assert exited.status == 3 << 8
    at = [event.provenance.at for event in (started, execed, exited)]
    assert at == sorted(at)
    assert all(e.after <= e.provenance.at and e.provenance.taken is Taken.LIVE for e in seen.events)


@asynchronous
async def test_processes_that_live_for_50_milliseconds_are_seen(
    plain: Guest, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    """On a machine so loaded that the watcher is not let run, the account says so: it is tried again."""
    short = "; ".join(["sleep 0.05 & echo $!; wait"] * SHORT_LIVES)
    async with qvmi.attach(plain.qmp, cache=profiles) as machine:
        for _ in range(TRIES):
            async with watching(machine) as seen:
                pids = pids_in((await asyncio.to_thread(plain.run, short)).decode())
            if not seen.stream.account.missed:
                break
    started = {event.process.pid for event in seen.of(ProcessStarted)}
    exited = {event.process.pid for event in seen.of(ProcessExited)}
    assert (started & exited).issuperset(pids)
    proof_count(len(pids))


@asynchronous
async def test_a_module_is_told_when_it_comes_and_when_it_goes(
    guest: Guest, profiles: Path
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine, watching(machine) as seen:
        await asyncio.to_thread(guest.ask, "load ifb")
        loaded = await seen.first(ModuleLoaded)
        (true,) = (one for one in guest.truth().modules if one.name == "ifb")
        await asyncio.to_thread(guest.ask, "unload ifb")
        unloaded = await seen.first(ModuleUnloaded)
    assert (loaded.module.name, loaded.module.address) == (true.name, true.address)
    assert unloaded.module.struct_address == loaded.module.struct_address
    assert len(seen.of(ModuleLoaded)) == len(seen.of(ModuleUnloaded)) == 1


@asynchronous
async def test_a_socket_is_told_when_it_begins_to_listen(
    guest: Guest, profiles: Path, shell: Callable[[str], Any]
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine, watching(machine) as seen:
        (listener,) = pids_in(await shell("nc -l -p 7531 </dev/null >/dev/null 2>&1 & echo $!"))
        listening = await seen.first(SocketListening)
        lines = (await shell("cat /proc/net/tcp /proc/net/tcp6")).splitlines()
        await shell(f"kill {listener}")
    (fields,) = (line.split() for line in lines if ":1D6B " in line)  # 7531
    assert (fields[3], int(fields[9])) == ("0A", listening.socket.inode)
    assert listening.socket.local.endswith(":7531")
    assert len(seen.of(SocketListening)) == 1


@asynchronous
async def test_a_mount_is_told_when_it_comes_and_when_it_goes_and_what_was_missed_is_counted(
    guest: Guest, profiles: Path, shell: Callable[[str], Any]
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine, watching(machine) as seen:
        await shell("mkdir -p /tmp/watched; mount -t tmpfs here /tmp/watched")
        mounted = await seen.first(Mounted)
        lines = (await shell("cat /proc/self/mountinfo")).splitlines()
        await shell("umount /tmp/watched")
        unmounted = await seen.first(Unmounted)
        await shell("mount -t tmpfs a /tmp/watched; mount -o remount,ro /tmp/watched")
        await seen.first(Missed, lambda event: event.what is What.MOUNT_CHANGES)
        await shell("umount /tmp/watched")
    (fields,) = (line.split() for line in lines if " /tmp/watched " in line)
    assert (mounted.mount.id, mounted.mount.device) == (int(fields[0]), fields[2])
    assert unmounted.mount.address == mounted.mount.address
    changes = len(seen.of(Mounted)) + len(seen.of(Unmounted))
    missed = [event.count or 0 for event in seen.of(Missed) if event.what is What.MOUNT_CHANGES]
    assert changes + sum(missed) == 5  # two mounts, a remount and two unmounts


@asynchronous
async def test_only_the_kinds_that_are_wanted_are_told(plain: Guest, profiles: Path) -> None:
    kinds = [EventKind.EXITED, EventKind.UNLOADED]
    async with qvmi.attach(plain.qmp, cache=profiles) as machine, watching(machine, kinds) as seen:
        for request in ("run sleep 0.1", "load ifb", "unload ifb"):
            await asyncio.to_thread(plain.ask, request)
        await seen.first(ProcessExited)
    assert {type(event) for event in seen.events} <= {ProcessExited, ModuleUnloaded, Missed}


# --------------------------------------------------------------------------------------------- losses


def has_forked(seen: Watching, often: int) -> bool:
    return (seen.stream.account.forks or 0) >= often


@asynchronous
async def test_in_a_storm_what_is_not_seen_is_counted_to_the_last_fork(
    guest: Guest,
    profiles: Path,
    proof_count: Callable[[int], None],
    record_property: Callable[[str, str], None],
) -> None:
    size = proof_size(ci=300, full=10_000)
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        for _ in range(TRIES):
            before = await asyncio.to_thread(forks_counted, guest)
            async with watching(machine) as seen:
                await asyncio.to_thread(guest.start_storm)
                await until(partial(has_forked, seen, size), within_s=NOTICED_S)
                storm = await asyncio.to_thread(guest.stop_storm)
                after = await asyncio.to_thread(forks_counted, guest)
            account = seen.stream.account
            if account.forks == after - before:
                break  # else a kernel worker began before the watching, or behind the guest's last word
    record_property("account", str(account))
    assert account.forks == after - before == account.found + account.missed
    told = [event.count for event in seen.of(Missed) if event.what is What.FORKS]
    assert sum(count or 0 for count in told) == account.missed
    everyone = {*storm.pids, *storm.seconds.values()}
    unseen = everyone - {event.process.pid for event in seen.of(ProcessStarted)}
    # Threads are found and counted, and are no events.
    assert len(unseen) - len(storm.seconds) <= account.missed <= len(unseen) + MOST_OTHERS
    assert {event.count for event in seen.of(Missed) if event.what is What.EXECS} <= {None}
    assert not seen.of(NotSeen)
    proof_count(account.forks)


@asynchronous
async def test_a_kernel_that_lies_about_its_counts_is_followed_and_no_more(
    guests: GuestPool, profiles: Path
) -> None:
    guest = guests.restore(GuestConfig("6.1"))
    policy = OBSERVE.plus(Grant.WRITE)
    async with (
        qvmi.attach(guest.qmp, cache=profiles, policy=policy) as machine,
        watching(machine) as seen,
    ):
        forks = machine.symbols.find("total_forks")
        assert forks is not None
        (now,) = NUMBER.unpack(machine.kernel_space.read(forks, 8))
        await machine.write_virtual(forks, NUMBER.pack(now + LIE))
        told = await seen.first(Missed, lambda event: (event.count or 0) >= LIE)
        await machine.write_virtual(forks, NUMBER.pack(now))
        pids = pids_in((await asyncio.to_thread(guest.run, "sleep 0.2 & echo $!; wait")).decode())
        await seen.first(ProcessStarted, lambda event: event.process.pid in pids)
    assert told.what is What.FORKS
    assert len(seen.events) < LIE // 1000


@asynchronous
async def test_a_process_off_the_list_is_not_told_as_exited_and_the_kernels_count_differs(
    guests: GuestPool, profiles: Path
) -> None:
    guest = guests.restore(GuestConfig("6.1"))
    async with qvmi.attach(guest.qmp, cache=profiles) as machine, watching(machine) as seen:
        hidden = await asyncio.to_thread(hide_process, guest, "sleep")
        gap = await seen.first(NotSeen)
        assert hidden.pid not in {event.process.pid for event in seen.of(ProcessExited)}
    assert gap.structure == "process_counts"
    assert len(seen.of(NotSeen)) == 1


# ------------------------------------------------------------------------------------------- exactly


@pytest.mark.parametrize(
    "guest", [CONFIGS[0], CONFIGS[2]], indirect=True, ids=lambda config: config.kernel
)
@asynchronous
async def test_exact_events_miss_nothing_and_say_what_they_cost(
    guest: Guest, profiles: Path, shell: Callable[[str], Any], proof_count: Callable[[int], None]
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        async with watching(machine, exact=True) as seen:
            pids = pids_in(await shell("for i in 1 2 3; do /bin/true & echo $!; wait; done"))
            await seen.first(ProcessExited, lambda event: event.process.pid == pids[-1])
        assert machine.guest.processes()
    assert [e.process.pid for e in seen.of(ProcessStarted) if e.process.pid in pids] == pids
    assert [e.process.pid for e in seen.of(ProcessExeced) if e.process.pid in pids] == pids
    assert [e.process.pid for e in seen.of(ProcessExited) if e.process.pid in pids] == pids
    execed = {e.process.name for e in seen.of(ProcessExeced) if e.process.pid in pids}
    assert execed == {"true"}
    assert all(event.provenance.taken is Taken.CAPTURED for event in seen.events)
    account = seen.stream.account
    assert account.stops >= len(seen.events) >= 3 * len(pids)
    assert account.stood_still_s > 0
    assert guest.monitor.running()
    proof_count(len(seen.events))


@asynchronous
async def test_exact_is_refused_where_no_breakpoint_tells(plain: Guest, profiles: Path) -> None:
    async with qvmi.attach(plain.qmp, cache=profiles) as machine:
        with pytest.raises(UsageError, match="loaded"):
            async with machine.exact_events([EventKind.LOADED]):
                pass
        with pytest.raises(UsageError, match="no-such"):
            async with machine.events(["no-such"]):
                pass


# --------------------------------------------------------------------------------------- beginning, end


def watchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "qvmi events"]


@asynchronous
async def test_a_reset_is_told_and_the_next_system_is_watched(
    guests: GuestPool, profiles: Path
) -> None:
    guest = guests.restore(GuestConfig("6.1"))
    guest.monitor.execute("set-action", reboot="reset")
    async with qvmi.attach(guest.qmp, cache=profiles) as machine, watching(machine) as seen:
        guest.monitor.execute("system_reset")
        changed = await seen.first(GuestChanged, lambda event: event.release != "")
        await seen.first(
            ProcessStarted, lambda event: event.provenance.epoch >= changed.provenance.epoch
        )
    assert [event.release for event in seen.of(GuestChanged)][:1] == [""]
    assert changed.release.startswith("6.1")
    assert changed.provenance.epoch > 0
    assert not watchers()


@asynchronous
async def test_the_end_of_qemu_ends_the_stream(guests: GuestPool, profiles: Path) -> None:
    guest = guests.restore(GuestConfig("6.1"))
    async with qvmi.attach(guest.qmp, cache=profiles) as machine, machine.events() as stream:
        guest.kill()
        following = asyncio.ensure_future(Watching(stream).follow())
        with pytest.raises(MachineGone):
            await asyncio.wait_for(following, NOTICED_S)
    assert not watchers()


@asynchronous
async def test_a_session_that_is_closed_ends_the_stream_and_leaves_no_thread(
    plain: Guest, profiles: Path
) -> None:
    async with qvmi.attach(plain.qmp, cache=profiles) as machine:
        watch = machine.events()
        stream = await watch.__aenter__()
        assert watchers()
    assert not watchers()
    assert [event async for event in stream if isinstance(event, NotSeen)] == []
    await watch.__aexit__(None, None, None)


@asynchronous
async def test_a_cancel_ends_the_watching(plain: Guest, profiles: Path) -> None:
    async with qvmi.attach(plain.qmp, cache=profiles) as machine:
        begun = asyncio.Event()

        async def watch() -> None:
            async with machine.events() as stream:
                begun.set()
                async for _ in stream:
                    pass

        watching_ = asyncio.create_task(watch())
        await begun.wait()
        watching_.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching_
        assert not watchers()
        assert machine.guest.processes()


@asynchronous
async def test_memory_that_has_to_be_asked_for_is_not_watched(plain: Guest, profiles: Path) -> None:
    async with qvmi.attach(plain.qmp, cache=profiles, sources=["pmemsave"]) as machine:
        with pytest.raises(NotDirect):
            async with machine.events():
                pass


# ---------------------------------------------------------------------------------------- the command


def begun(guest: Guest, *arguments: str) -> "subprocess.Popen[str]":
    """This is the command as it watches."""
    command = (*QVMI, "--qmp", guest.qmp, "--json", "events", *arguments)
    program = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stderr is not None
    assert "watching" in program.stderr.readline()
    return program


def test_the_command_prints_a_document_for_each_event_and_an_account_at_its_end(
    plain: Guest,
) -> None:
    with begun(plain, "--kinds", "mounted,unmounted") as program:
        try:
            plain.run("mkdir -p /mnt; mount -t tmpfs '[red]' /mnt")
            assert program.stdout is not None
            first = json.loads(program.stdout.readline())
            plain.run("umount /mnt")
            second = json.loads(program.stdout.readline())
            program.send_signal(signal.SIGINT)
            (last,) = map(json.loads, program.stdout.read().splitlines())
            assert program.wait() == 0
        finally:
            program.kill()
    assert [one["kind"] for one in (first, second, last)] == ["mounted", "unmounted", "account"]
    assert (first["mount"]["path"], first["mount"]["source"]) == ("/mnt", "[red]")
    assert first["after"] <= first["provenance"]["at"]
    assert (last["forks"], last["dropped"]) == (None, 0)
    assert last["looks"] > last["rescans"] > 0


def test_a_command_that_is_killed_at_its_breakpoints_leaves_its_guest_running(plain: Guest) -> None:
    with begun(plain, "--exact") as program:
        os.kill(program.pid, signal.SIGKILL)
    assert plain.run("echo on")[:2] == b"on"
    assert plain.monitor.running()


def test_a_command_that_is_killed_while_it_looks_leaves_its_guest_running(plain: Guest) -> None:
    with begun(plain) as program:
        plain.start_storm()
        os.kill(program.pid, signal.SIGKILL)
    assert plain.stop_storm().count > 0
    assert plain.monitor.running()
