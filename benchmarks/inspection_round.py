"""A round of looks of all codepacks that come with qvmi, and comparing the kernel's code once.

``python benchmarks/inspection_round.py [--quick]``. Processor time, not time that passes: of the looks as a
watch takes them, one after the other with shared readings, and of a bare loop that compares the same text
and constants with a copy, which is the least that looking for changed code costs. Memory is the peak of a
whole ``qvmi watch all``, with the guest's pages that it has mapped. That they see the same guest is checked
by the executables that are gone: a codepack names those that the guest's own /proc does.
"""

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from looks import make_lab
from race import (
    Disagreement,
    Side,
    Size,
    agree,
    in_turns,
    process_environment,
    run,
    tell,
    tell_ratio,
)

import qvmi
from qvmi.codepacks.fellows import Fellows
from qvmi.codepacks.look import Look
from qvmi.codepacks.looker import Looker
from qvmi.machine.machine import Machine
from tests.built_in_packs import MEMORY_PACKS, made
from tests.guests.lab import Guest, GuestConfig

KERNEL: Final = "7.x"
LIMIT_S: Final = 1.0
LIMIT_MIB: Final = 150
PIECE: Final = 1 << 16
RUNS: Final = (("_stext", "_etext"), ("__start_rodata", "__end_rodata"))
GONE: Final = re.compile(rb"/proc/([0-9]+)/exe -> .* \(deleted\)$", re.MULTILINE)
WATCH: Final = """
import re, sys
from qvmi.cli.main import main
main()
print("peak", re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""
ENDS_S: Final = 120


class Rounds:
    """This looks at one machine as a watch does."""

    def __init__(self, machine: Machine) -> None:
        shared = Fellows().shared
        self._lookers = [Looker(made(name, 1.0), machine, shared=shared) for name in MEMORY_PACKS]

    async def look(self) -> Sequence[Look]:
        """This is one round."""
        looks = [await looker.look() for looker in self._lookers]
        if any(one.error for one in looks):
            raise Disagreement(f"a codepack failed: {[one.problem for one in looks]}")
        return looks


def timed(runner: asyncio.Runner, rounds: Rounds) -> Side:
    """This is the processor time of a round."""

    def side() -> float:
        began = time.process_time()
        runner.run(rounds.look())
        return time.process_time() - began

    return side


def bare(machine: Machine, ram: Path) -> Side:
    """This compares the same code with a copy, and does nothing else.

    The guest's RAM is one file and lies below the hole for devices, so that addresses are offsets.
    """
    kernel = machine.guest.kernel
    file, places = os.open(ram, os.O_RDONLY), list[int]()  # closed with the process
    for names in RUNS:
        start, end = (kernel.symbols.find(name) or 0 for name in names)
        places += [kernel.space.translate(qvmi.Va(at)) for at in range(start, end, PIECE)]
    kept = [os.pread(file, PIECE, at) for at in places]

    def side() -> float:
        began = time.process_time()
        same = [os.pread(file, PIECE, at) == was for at, was in zip(places, kept, strict=True)]
        if not any(same):
            raise Disagreement("nothing of the kernel's code is as it was")
        return time.process_time() - began

    return side


def same_executables(looks: Sequence[Look], guest: Guest) -> None:
    """This checks that the round has seen what the guest itself says."""
    said = guest.run("ls -l /proc/[0-9]*/exe 2>/dev/null")
    theirs = [int(pid) for pid in GONE.findall(said)]
    found = (finding for one in looks for finding in one.findings)
    ours = [
        finding.evidence[0].facts["pid"]
        for finding in found
        if finding.key.startswith("executable ")
    ]
    agree("executables that are gone", ours, theirs)


def peak_mib(guest: Guest, profiles: Path, seconds: int) -> float:
    """This is the peak of a whole command that watches for a moment, each codepack as often as it can."""
    often = ("--interval", "0.05", "--for", str(seconds))
    done = subprocess.run(
        [sys.executable, "-c", WATCH, "--qmp", guest.qmp, "--json", "watch", "all", *often],
        capture_output=True,
        text=True,
        env=process_environment(XDG_CACHE_HOME=str(profiles)),
        timeout=ENDS_S,
        check=True,
    )
    return int(done.stdout.rpartition("peak")[2]) / 1024


def main(size: Size) -> None:
    """This looks at one thawed guest of more than a hundred tasks."""
    with (
        make_lab().restore(GuestConfig(kernel=KERNEL)) as guest,
        asyncio.Runner() as runner,
        tempfile.TemporaryDirectory(prefix="qvmi-") as name,
    ):
        attachment = qvmi.attach(guest.qmp, cache=Path(name))
        machine = runner.run(attachment.__aenter__())
        try:
            rounds = Rounds(machine)
            began = time.process_time()
            same_executables(runner.run(rounds.look()), guest)
            first = time.process_time() - began
            ours, least = in_turns(
                size.of(full=30, quick=2), timed(runner, rounds), bare(machine, guest.ram_paths[0])
            )
        finally:
            runner.run(attachment.__aexit__(None, None, None))
        peak = peak_mib(guest, Path(name), size.of(full=10, quick=2))
    what = (
        f"CPU of a round of {len(MEMORY_PACKS)} codepacks after the first ({first:.2f} s), {KERNEL}"
    )
    tell(what, ours, limit_s=LIMIT_S, peer="comparing text and constants alone", theirs=least)
    tell_ratio(
        "peak memory of qvmi watch all",
        f"{peak:.0f} MiB",
        peak / LIMIT_MIB,
        beside=f"limit {LIMIT_MIB} MiB",
        target=f"below {LIMIT_MIB} MiB",
        reached=peak < LIMIT_MIB,
    )


if __name__ == "__main__":
    run(main)
