"""What a round of looks of all codepacks takes: processor time and memory, on a guest that was left alone.

``python benchmarks/inspection.py [--quick]``. They look one after the other, as in one process, where they
share what they read. The first round reads types and tables, and is told apart. Memory is this process's own,
without the pages of RAM that it has mapped, looked at every few milliseconds in rounds of their own.
"""

import asyncio
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from looks import KERNEL, make_lab, same_as_guest_says
from race import Disagreement, Size, Times, run, tell, tell_ratio

import qvmi
from qvmi.cli.watching import PACK_MAKERS
from qvmi.codepacks.looker import Looker
from qvmi.codepacks.shared_answers import SharedAnswers
from qvmi.codepacks.status import Sight
from qvmi.policy import Grant
from tests.guests.lab import Guest, GuestConfig

MOST_CPU_S: Final = 1.0
MOST_BYTES: Final = 150 << 20
DEADLINE_S: Final = 120.0
SAMPLE_S: Final = 0.005


@dataclass(slots=True)
class Peak:
    """This is the most memory that was seen, in bytes."""

    size: int = 0


def own_bytes() -> int:
    """This is the memory of this process that is no file's."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) << 10


@contextmanager
def sampled() -> Iterator[Peak]:
    """This looks at this process's memory for as long as the block lasts."""
    peak, over = Peak(own_bytes()), threading.Event()

    def sample() -> None:
        while not over.wait(SAMPLE_S):
            peak.size = max(peak.size, own_bytes())

    thread = threading.Thread(target=sample, name="sample", daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def lookers(machine: qvmi.Machine) -> list[Looker]:
    """These let those codepacks look that need nothing but memory."""
    shared = SharedAnswers()
    packs = [make(1.0) for make in PACK_MAKERS.values()]
    return [
        Looker(pack, machine, deadline_s=DEADLINE_S, shared=shared)
        for pack in packs
        if pack.grants == {Grant.READ_MEMORY}
    ]


async def one_round(those: Sequence[Looker]) -> float:
    """This has each look once, and gives the processor time that it took.

    Raises:
        Disagreement: one could not see all, so that its time says nothing.
    """
    began = time.process_time()
    for looker in those:
        look = await looker.look()
        if look.sight not in {Sight.FULL, Sight.GAPS}:
            raise Disagreement(f"sight {look.sight}: {look.problem}")
    return time.process_time() - began


async def measured(guest: Guest, size: Size) -> None:
    """This tells what rounds cost."""
    async with qvmi.attach(guest.qmp) as machine:
        await asyncio.to_thread(same_as_guest_says, "processes", guest, machine)
        those, alone = lookers(machine), own_bytes()
        with sampled() as first_peak:
            first = await one_round(those)
        times = Times([await one_round(those) for _ in range(size.of(full=20, quick=1))])
        with sampled() as later_peak:
            for _ in range(size.of(full=11, quick=1)):
                await one_round(those)
        tasks = len(machine.guest.processes())
    what = f"a round of {len(those)} codepacks, {tasks} tasks, {os.cpu_count()} cores"
    tell(f"{what}: processor time, the first round {first:.2f} s", times, limit_s=MOST_CPU_S)
    most = max(first_peak.size, later_peak.size)
    tell_ratio(
        f"{what}: memory",
        f"at most {most / (1 << 20):.0f} MiB",
        most / MOST_BYTES,
        beside=f"{alone / (1 << 20):.0f} MiB before the first look",
        target=f"at most {MOST_BYTES >> 20} MiB",
        reached=most <= MOST_BYTES,
    )


def main(size: Size) -> None:
    """This measures."""
    with make_lab().restore(GuestConfig(kernel=KERNEL)) as guest:
        asyncio.run(measured(guest, size))


if __name__ == "__main__":
    run(main)
