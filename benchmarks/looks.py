"""What the benchmarks have each side do in a program that runs already, timed without its ending."""

import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import peer_drgn
from race import Disagreement, Side, agree

import qvmi
from qvmi import Listing, Process, SyncMachine
from tests.guests.lab import Guest, Lab, debug_vmlinux

__all__ = [
    "cold",
    "drgn_cold",
    "make_lab",
    "same_as_guest_says",
    "same_processes",
    "stopped",
    "vmlinux",
    "warm",
]

KERNEL = "6.1"
"""The kernel whose debug information the peer is given."""
_TRIES = 5
"""Kernel workers come and go; two looks in a row with the same ones are had within a few tries."""
_ROUNDING = 1e-6
"""Of a start time in seconds, which the guest counts in whole ticks."""


def make_lab() -> Lab:
    """This makes the maker of guests, which tells on stderr what takes long."""
    return Lab(say=lambda text: print(text, file=sys.stderr))


def vmlinux(lab: Lab) -> Path:
    """This is the peer's debug information, which is fetched once."""
    return debug_vmlinux(KERNEL, lab.cache, lab.say)


def cold(runner: asyncio.Runner, guest: Guest) -> Side:
    """This attaches and lists as if the kernel had never been seen: without any profile."""

    def side() -> float:
        with tempfile.TemporaryDirectory(prefix="qvmi-") as empty:
            return _attach_and_list(runner, guest, Path(empty))

    return side


@contextmanager
def warm(runner: asyncio.Runner, guest: Guest) -> Iterator[Side]:
    """This attaches and lists with the profile that a first attach has left behind."""
    with tempfile.TemporaryDirectory(prefix="qvmi-") as kept:
        _attach_and_list(runner, guest, Path(kept))
        yield lambda: _attach_and_list(runner, guest, Path(kept))


def _attach_and_list(runner: asyncio.Runner, guest: Guest, profiles: Path) -> float:
    async def look() -> float:
        began = time.perf_counter()
        async with qvmi.attach(guest.qmp, cache=profiles) as machine:
            machine.guest.processes()
            return time.perf_counter() - began

    return runner.run(look())


def drgn_cold(guest: Guest, debug_information: Path) -> Side:
    """This has drgn load its debug information and list."""

    def side() -> float:
        began = time.perf_counter()
        peer_drgn.processes(peer_drgn.attached(guest.ram_paths[0], debug_information))
        return time.perf_counter() - began

    return side


@contextmanager
def stopped(guest: Guest) -> Iterator[None]:
    """This lets two sides see the very same moment."""
    guest.monitor.execute("stop")
    try:
        yield
    finally:
        guest.monitor.execute("cont")


def same_processes(what: str, guest: Guest, debug_information: Path) -> None:
    """This checks that qvmi and drgn list the same processes, with every field alike.

    Raises:
        Disagreement: they do not, or qvmi says that it could not look everywhere.
    """
    with stopped(guest), qvmi.attach_sync(guest.qmp, use_cache=False) as machine:
        ours: Listing[Process] = machine.guest.processes()
        theirs = peer_drgn.processes(peer_drgn.attached(guest.ram_paths[0], debug_information))
    if ours.gaps:
        raise Disagreement(f"{what}: qvmi could not look everywhere: {ours.gaps}")
    agree(what, [msgspec.structs.astuple(process) for process in ours], theirs)


def same_as_guest_says(what: str, guest: Guest, machine: SyncMachine | qvmi.Machine) -> None:
    """This checks the process list against the guest's own, as it stands between two workers' births.

    Raises:
        Disagreement: they differ, time and again.
    """
    for _ in range(_TRIES):
        truth = guest.settled_truth()
        told = [(task.pid, task.ppid, task.start_ticks) for task in truth.processes]
        rows = machine.guest.processes()
        starts = [int(row.start_time_s * truth.clock_ticks + _ROUNDING) for row in rows]
        found = [(row.pid, row.ppid, start) for row, start in zip(rows, starts, strict=True)]
        if sorted(found) == sorted(told):
            break
    agree(what, found, told)
