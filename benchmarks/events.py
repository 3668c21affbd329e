"""How soon what happens in a guest is seen by looking at its memory, what that costs, and a gdb beside it.

``python benchmarks/events.py [--quick]``. When a process was forked the guest's kernel says itself, by its
clock, which is set beside the host's by the quickest event of all: a latency is what is longer than that.
gdb stands at a breakpoint that each new task passes. Both watch the same guest, first at once, then in turns.
While gdb stops it the guest's clock stands still, which tells for how long.
"""

import asyncio
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from live_listing import Pairs, fitting_count, pin, work
from looks import KERNEL, make_lab
from race import Disagreement, Size, Times, agree, percentile, run, tell_ratio

import qvmi
from qvmi.machine.events.event_stream import EventAccount, EventStream
from qvmi.semantics.rows.events import (
    GuestEvent,
    Mounted,
    ProcessExeced,
    ProcessExited,
    ProcessStarted,
    SocketListening,
)
from tests.guests.lab import Guest, GuestConfig

LIFE_S = 0.05
MOST_FORK_S = 0.005
MOST_RESCAN_S = 0.1
MOST_SHARE = 0.1
MOST_SLOWER = 0.03
PAIRS = 30
NEAR = 50
"""Events before and behind one, among which the quickest sets the clocks."""
STARTS_S = 60.0
SETTLES_S = 0.1
OLD = (
    "mkfifo /run/go 2>/dev/null; sh -c 'read go </run/go; exec sleep 100' & pid=$!; sleep 1.1;"
    " read exec _ </proc/uptime; echo go >/run/go; sleep 0.3;"
    " read exit _ </proc/uptime; kill -9 $pid; sleep 0.3;"
    " read listen _ </proc/uptime; nc -l -p 4000 >/dev/null 2>&1 & nc=$!; sleep 0.3; kill -9 $nc; sleep 0.3;"
    " echo $pid $exec $exit $listen"
)
"""A process that is older than a second execs, and is killed; then somebody listens."""
PORT = ":4000"
PLACE = "wake_up_new_task"
TASK_FIELDS = {"pid": "pid", "tgid": "tgid", "start": "start_boottime"}


@dataclass(slots=True)
class Seen:
    """This is what was seen, and when it was handed over, on the host's clock."""

    rows: list[tuple[float, GuestEvent]] = field(default_factory=list)
    account: EventAccount = field(default_factory=EventAccount)

    def forks(self) -> list[tuple[float, int, float]]:
        """These are the processes that started: when they were seen, pid, and when by the guest's clock."""
        found = [(at, row.process) for at, row in self.rows if isinstance(row, ProcessStarted)]
        return [(at, process.pid, process.start_time_s) for at, process in found]


@asynccontextmanager
async def watched(machine: qvmi.Machine) -> AsyncIterator[Seen]:
    """This takes events as they come, for as long as the block lasts."""
    seen = Seen()

    async def take(stream: EventStream) -> None:
        async for event in stream:
            seen.rows.append((time.time(), event))

    async with machine.events() as stream:
        taking = asyncio.create_task(take(stream))
        yield seen
    await taking
    seen.account = stream.account


class Gdb:
    """This is gdb on a guest, at a breakpoint.

    Args:
        guest: the guest.
        machine: tells where things are in it.
        folder: for what gdb is told, and tells.
    """

    def __init__(self, guest: Guest, machine: qvmi.Machine, folder: Path) -> None:
        symbols = machine.symbols
        place = symbols.find(PLACE)
        fields = {one: symbols.find_field("task_struct", (n,)) for one, n in TASK_FIELDS.items()}
        if place is None or None in fields.values():
            raise Disagreement(f"no {PLACE} in this kernel")
        self.rows_file, self.ready = folder / "rows", folder / "ready"
        told = {name: one.offset for name, one in fields.items() if one is not None}
        told_file = folder / "told"
        others = {"place": place, "ready": str(self.ready), "rows": str(self.rows_file)}
        told_file.write_text(json.dumps(told | others))
        script = Path(__file__).with_name("gdb_forks.py")
        self._program = subprocess.Popen(
            [
                *("gdb", "-nx", "-batch", "-ex", "set architecture i386:x86-64"),
                *("-ex", f"target remote {guest.gdb_socket}", "-x", str(script)),
            ],
            env=os.environ | {"FORKS": str(told_file)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def wait_until_ready(self) -> None:
        """This waits until the guest runs on, with the breakpoint in it."""
        deadline = time.monotonic() + STARTS_S
        while not self.ready.exists():
            if time.monotonic() > deadline or self._program.poll() is not None:
                self._program.kill()
                _, words = self._program.communicate()
                raise Disagreement(f"gdb does not start: {words.decode(errors='replace')}")
            time.sleep(0.01)
        time.sleep(SETTLES_S)

    def end(self) -> list[tuple[float, int, float]]:
        """This ends gdb, and gives the processes that it has seen: when, pid, and the guest's own time."""
        self._program.send_signal(signal.SIGINT)
        _, words = self._program.communicate(timeout=STARTS_S)
        if not self.rows_file.exists():
            raise Disagreement(f"gdb failed: {words.decode(errors='replace')}")
        rows = json.loads(self.rows_file.read_text())
        return [(at, pid, start) for at, pid, tgid, start in rows if pid == tgid]


@contextmanager
def gdb_at(
    guest: Guest, machine: qvmi.Machine
) -> Iterator[Callable[[], list[tuple[float, int, float]]]]:
    """This has gdb at its breakpoint; what the block is given ends it."""
    with tempfile.TemporaryDirectory(prefix="qvmi-") as folder:
        gdb = Gdb(guest, machine, Path(folder))
        gdb.wait_until_ready()
        yield gdb.end


def short_lives(guest: Guest, count: int) -> list[int]:
    """This lets the guest run so many processes of 50 ms, one after the other, and gives their pids."""
    pids: list[int] = []
    while len(pids) < count:
        more = min(20, count - len(pids))
        script = f"for i in $(seq {more}); do sleep {LIFE_S} & echo $!; wait; done"
        pids += map(int, guest.run(script).split())
    return pids


def latencies(forks: Sequence[tuple[float, int, float]], pids: Sequence[int]) -> list[float]:
    """This is how much later than the quickest around it each was seen, in seconds, by rising time."""
    wanted = set(pids)
    behind = [at - start for at, pid, start in forks if pid in wanted]
    around = (min(behind[max(0, n - NEAR) : n + NEAR]) for n in range(len(behind)))  # clocks drift
    return sorted(one - least for one, least in zip(behind, around, strict=True))


def standstills(forks: Sequence[tuple[float, int, float]]) -> list[float]:
    """This is by how much the guest's clock has fallen behind from one to the next, by rising time.

    It stands still with the guest, so that how late gdb itself hears of a fork cannot be told by it.
    """
    behind = [at - start for at, _, start in forks]
    return sorted(later - before for before, later in pairwise(behind))


async def same_forks(guest: Guest, machine: qvmi.Machine, count: int) -> None:
    """This has both watch at once, and checks that they have seen the same.

    Raises:
        Disagreement: they have not.
    """
    async with watched(machine) as seen:
        with gdb_at(guest, machine) as end:
            pids = set(await asyncio.to_thread(short_lives, guest, count))
            theirs = await asyncio.to_thread(end)
    ours = [pid for _, pid, _ in seen.forks() if pid in pids]
    agree("processes of 50 ms", ours, [pid for _, pid, _ in theirs if pid in pids])


async def soon(guest: Guest, machine: qvmi.Machine, count: int, gdb_count: int) -> None:
    """This tells how soon forks are seen, and what share of a core the looking takes."""
    async with watched(machine) as seen:
        pids = await asyncio.to_thread(short_lives, guest, count)
    with gdb_at(guest, machine) as end:
        await asyncio.to_thread(short_lives, guest, gdb_count)
        still = standstills(await asyncio.to_thread(end))
    ours = latencies(seen.forks(), pids)
    p50, p99 = percentile(ours, 0.5), percentile(ours, 0.99)
    missed = len(set(pids) - {pid for _, pid, _ in seen.forks()})
    tell_ratio(
        f"forks of processes that live for 50 ms: {len(pids)}, {missed} not seen",
        f"seen within p50 {p50 * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms",
        p99 / MOST_FORK_S,
        beside=f"gdb lets the guest stand still for p50 {percentile(still, 0.5) * 1e3:.2f} ms each,"
        f" p99 {percentile(still, 0.99) * 1e3:.2f} ms",
        target=f"p99 at most {MOST_FORK_S * 1e3:.0f} ms, none not seen",
        reached=p99 <= MOST_FORK_S and not missed,
    )
    share(f"watching {len(pids)} forks", seen.account)


def share(what: str, account: EventAccount) -> None:
    """This tells what the looking has used of a core."""
    used = account.cpu_s / account.watched_s
    rate = account.looks / account.watched_s
    tell_ratio(
        f"{what}: {rate:.0f} looks a second",
        f"{used:.1%} of a core",
        used / MOST_SHARE,
        beside=f"{account.forks} forks, {account.missed} missed",
        target=f"at most {MOST_SHARE:.0%}",
        reached=used <= MOST_SHARE,
    )


async def mounts(guest: Guest, machine: qvmi.Machine, count: int) -> None:
    """This tells how soon a mount is seen, by the guest's clock just before it was made."""
    script = "mkdir -p /mnt; read up _ </proc/uptime; mount -t tmpfs none /mnt; echo $up"
    async with watched(machine) as seen:
        before = [await asyncio.to_thread(_mounted, guest, script) for _ in range(count)]
    found = [at for at, event in seen.rows if isinstance(event, Mounted)]
    tell_late(f"{count} mounts, the making of each included", seen, found, before)


async def old_ones(guest: Guest, machine: qvmi.Machine, count: int) -> None:
    """This tells how soon an exec and the end of an old process are seen, and somebody who listens."""
    async with watched(machine) as seen:
        told = [(await asyncio.to_thread(guest.run, OLD)).split() for _ in range(count)]
    pids = {int(pid) for pid, *_ in told}
    own = [
        (at, row)
        for at, row in seen.rows
        if isinstance(row, ProcessExeced | ProcessExited) and row.process.pid in pids
    ]
    # The last of each: it execs twice, busybox by /proc/self/exe, whose name it changes later.
    execs = {row.process.pid: at for at, row in own if isinstance(row, ProcessExeced)}
    ends = {row.process.pid: at for at, row in own if isinstance(row, ProcessExited)}
    heard = [
        at
        for at, row in seen.rows
        if isinstance(row, SocketListening) and row.socket.local.endswith(PORT)
    ]
    for number, (what, found) in enumerate(
        (
            ("execs of processes older than a second", list(execs.values())),
            ("ends of processes older than a second", list(ends.values())),
            ("sockets that listen, a program's start included", heard),
        ),
        start=1,
    ):
        tell_late(f"{count} {what}", seen, found, [float(one[number]) for one in told])


def tell_late(what: str, seen: Seen, found: Sequence[float], before: Sequence[float]) -> None:
    """This tells how long after the guest's clock said so something was seen.

    Args:
        what: was.
        seen: all that was, which sets the guest's clock beside the host's.
        found: when it was, on the host's clock.
        before: just before it was done, on the guest's, which counts hundredths of a second.

    Raises:
        Disagreement: it was seen more or less often than it was done.
    """
    if len(found) != len(before):
        raise Disagreement(f"{what}: {len(found)} were seen")
    apart = min(at - start for at, _, start in seen.forks())
    late = sorted(at - apart - up for at, up in zip(found, before, strict=True))
    p50, p99 = percentile(late, 0.5), percentile(late, 0.99)
    tell_ratio(
        what,
        f"seen within p50 {p50 * 1e3:.0f} ms, p99 {p99 * 1e3:.0f} ms",
        p99 / MOST_RESCAN_S,
        beside="no peer",
        target=f"p99 at most {MOST_RESCAN_S * 1e3:.0f} ms",
        reached=p99 <= MOST_RESCAN_S,
    )


def _mounted(guest: Guest, script: str) -> float:
    up = float(guest.run(script))
    time.sleep(2 * MOST_RESCAN_S)
    guest.run("umount /mnt")
    # One that comes in the same place before that is seen is the same.
    time.sleep(2 * MOST_RESCAN_S)
    return up


async def storms(guest: Guest, machine: qvmi.Machine, seconds: float) -> None:
    """This tells how often a guest forks: alone, watched, and with gdb at its breakpoint."""
    alone = await asyncio.to_thread(storm, guest, seconds)
    async with watched(machine) as seen:
        with_qvmi = await asyncio.to_thread(storm, guest, seconds)
    with gdb_at(guest, machine) as end:
        with_gdb = await asyncio.to_thread(storm, guest, seconds)
        await asyncio.to_thread(end)
    tell_ratio(
        f"a storm of {alone:.0f} forks a second, on cores that all share",
        f"goes on at {with_qvmi:.0f} a second",
        with_qvmi / alone,
        beside=f"with gdb at {with_gdb:.0f} a second",
        target="more than with gdb",
        reached=with_qvmi > with_gdb,
    )
    share("watching that storm", seen.account)


def storm(guest: Guest, seconds: float) -> float:
    """This lets the guest storm, and gives its forks in a second."""
    began = time.perf_counter()
    guest.start_storm()
    time.sleep(seconds)
    found = guest.stop_storm()
    return (found.count + len(found.seconds)) / (time.perf_counter() - began)


async def slower(guest: Guest, machine: qvmi.Machine, size: Size) -> None:
    """This tells how much slower a guest counts while it is watched, on a core of its own."""
    vcpu, others, *_ = sorted(os.sched_getaffinity(0)) * 2
    pin(guest, vcpu=vcpu, others=others)
    count = await asyncio.to_thread(fitting_count, guest, 0.3 if size.quick else 1.0)
    alone: list[float] = []
    with_qvmi: list[float] = []
    looks = 0
    for number in range(size.of(full=PAIRS, quick=1)):
        for watch in (True, False) if number % 2 else (False, True):
            if not watch:
                alone.append(await asyncio.to_thread(work, guest, count))
                continue
            async with watched(machine) as seen:
                with_qvmi.append(await asyncio.to_thread(work, guest, count))
            looks += seen.account.looks
    found = Pairs(alone, with_qvmi, looks)
    rate = looks / sum(with_qvmi)
    tell_ratio(
        f"watching, vCPU on a core of its own: {len(alone)} pairs, {rate:.0f} looks a second",
        f"slows the guest by {found.slower:+.2%}, 95 % bound {found.bound:+.2%}",
        1 + found.slower,
        beside=f"guest alone {Times(alone)}",
        target=f"bound at most {MOST_SLOWER:.0%}",
        reached=found.bound <= MOST_SLOWER,
    )


async def measured(guest: Guest, size: Size) -> None:
    """This measures all that needs two vCPUs and a gdbstub."""
    async with qvmi.attach(guest.qmp) as machine:
        await same_forks(guest, machine, size.of(full=20, quick=3))
        async with watched(machine) as seen:
            await asyncio.sleep(10.0 if not size.quick else 0.2)
        share("watching a guest at rest", seen.account)
        await soon(guest, machine, size.of(full=500, quick=5), size.of(full=200, quick=3))
        await mounts(guest, machine, size.of(full=60, quick=2))
        await old_ones(guest, machine, size.of(full=60, quick=1))
        await storms(guest, machine, 8.0 if not size.quick else 0.3)


async def measured_apart(guest: Guest, size: Size) -> None:
    """This measures what needs a vCPU with a core of its own."""
    async with qvmi.attach(guest.qmp) as machine:
        await slower(guest, machine, size)


def main(size: Size) -> None:
    """This measures on two guests, one after the other."""
    lab = make_lab()
    with lab.restore(GuestConfig(kernel=KERNEL, gdbstub=True)) as guest:
        asyncio.run(measured(guest, size))
    with lab.restore(GuestConfig(kernel=KERNEL, cpus=1)) as guest:
        asyncio.run(measured_apart(guest, size))


if __name__ == "__main__":
    run(main)
