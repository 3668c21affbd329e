"""How much slower a guest is while its processes are listed ten times a second.

``python benchmarks/live_listing.py [--quick]``. The guest has one vCPU and counts in a loop of its
shell; how long it takes for a fixed count says how fast it is. It does so with and without somebody
looking, in pairs whose order alternates. First its vCPU has a core of its own, and qvmi and the rest of
QEMU another; then all share one, which is told and has no target.
"""

import math
import os
import random
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from looks import KERNEL, make_lab, same_as_guest_says
from race import Size, Times, run, tell_ratio

import qvmi
from qvmi import SyncMachine
from tests.guests.lab import Guest, GuestConfig, LabError

INTERVAL_S = 0.1
PAIRS = 40
RESAMPLED = 10_000
CONFIDENCE = 0.95
MOST_SLOWER = 0.03
WORK_S = 1.0
"""A trial takes about as long, so that each has some ten looks in it."""
QUICK_WORK_S = 0.3
FIRST_COUNT = 20_000
"""Takes a guest under emulation a tenth of a second or so."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """This is how long the same work took alone and while it was looked at, pair by pair, in seconds."""

    alone: Sequence[float]
    watched: Sequence[float]
    looks: int

    @property
    def logarithms(self) -> list[float]:
        """These are the logarithms of each pair's ratio, which are symmetric where ratios are not."""
        pairs = zip(self.alone, self.watched, strict=True)
        return [math.log(watched / alone) for alone, watched in pairs]

    @property
    def slower(self) -> float:
        """This is by how much the guest was slower, 0.01 being one per cent."""
        return math.expm1(statistics.fmean(self.logarithms))

    @property
    def bound(self) -> float:
        """This is what the slow-down is below, with 95 % confidence: a bootstrap over the pairs."""
        found, generator = self.logarithms, random.Random(1)  # noqa: S311 - no cipher
        means = sorted(
            statistics.fmean(generator.choices(found, k=len(found))) for _ in range(RESAMPLED)
        )
        return math.expm1(means[int(CONFIDENCE * RESAMPLED)])


def work(guest: Guest, count: int) -> float:
    """This lets the guest count, and is how long it took, in seconds."""
    began = time.perf_counter()
    guest.run(f"i=0; while [ $i -lt {count} ]; do i=$((i+1)); done")
    return time.perf_counter() - began


def fitting_count(guest: Guest, seconds: float) -> int:
    """This is how far the guest counts in that time."""
    work(guest, FIRST_COUNT)
    return int(FIRST_COUNT * seconds / work(guest, FIRST_COUNT))


@contextmanager
def watching(machine: SyncMachine, looks: list[int]) -> Iterator[None]:
    """This lists the processes ten times a second for as long as the block lasts."""
    ended = threading.Event()

    def look() -> None:
        due = time.perf_counter()
        while not ended.wait(max(due - time.perf_counter(), 0)):
            looks.append(len(machine.guest.processes()))
            due += INTERVAL_S

    thread = threading.Thread(target=look, name="looks")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def in_pairs(guest: Guest, machine: SyncMachine, pairs: int, count: int) -> Pairs:
    """This takes turns, and turns about who is first."""
    alone: list[float] = []
    watched: list[float] = []
    looks: list[int] = []

    def look() -> None:
        with watching(machine, looks):
            watched.append(work(guest, count))

    def leave() -> None:
        alone.append(work(guest, count))

    for number in range(pairs):
        for side in (look, leave) if number % 2 else (leave, look):
            side()
    return Pairs(alone, watched, len(looks))


def pin(guest: Guest, *, vcpu: int, others: int) -> None:
    """This puts the vCPU on one core, and all else of QEMU and this program on another."""
    (row,) = guest.monitor.execute("query-cpus-fast")
    for process in ("self", str(guest.pid)):
        for task in Path(f"/proc/{process}/task").iterdir():
            core = vcpu if int(task.name) == row["thread-id"] else others
            os.sched_setaffinity(int(task.name), {core})


def told(what: str, found: Pairs, work_s: float) -> None:
    """This prints a slow-down, with the target."""
    rate = found.looks / sum(found.watched)
    tell_ratio(
        f"{what}: {len(found.alone)} pairs of {work_s:.2g} s, {rate:.1f} looks a second",
        f"slows the guest by {found.slower:+.2%}, 95 % bound {found.bound:+.2%}",
        1 + found.slower,
        beside=f"guest alone {Times(found.alone)}",
        target=f"bound at most {MOST_SLOWER:.0%}",
        reached=found.bound <= MOST_SLOWER,
    )


def main(size: Size) -> None:
    """This measures apart, and on one core."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == 1:
        raise LabError("qvmi and the guest cannot be kept apart on one core")
    work_s = QUICK_WORK_S if size.quick else WORK_S
    pairs = size.of(full=PAIRS, quick=2)
    with (
        make_lab().restore(GuestConfig(kernel=KERNEL, cpus=1)) as guest,
        qvmi.attach_sync(guest.qmp) as machine,
    ):
        same_as_guest_says("live listing", guest, machine)
        pin(guest, vcpu=cores[0], others=cores[1])
        count = fitting_count(guest, work_s)
        told(
            "live listing at 10 Hz, vCPU on a core of its own",
            in_pairs(guest, machine, pairs, count),
            work_s,
        )
        pin(guest, vcpu=cores[0], others=cores[0])
        shared = in_pairs(guest, machine, pairs, count)
        print(
            f"the same on one core: slows the guest by {shared.slower:+.2%},"
            f" 95 % bound {shared.bound:+.2%}; no target",
            flush=True,
        )


if __name__ == "__main__":
    run(main)
