"""How long discovery takes in a guest of 3 GiB, against one of 512 MiB that runs the same.

``python benchmarks/guest_size.py [--quick]``. Discovery is timed both ways: by the form of the tables
in the kernel's image, and by VMCOREINFO, which is searched for in all RAM that the guest has touched.
The guests' own words are the check.
"""

import time
from collections.abc import Sequence

from looks import KERNEL, make_lab
from race import Side, Size, agree, in_turns, run, tell_ratio

import qvmi
from qvmi import SyncMachine
from qvmi.semantics.linux.discovery import (
    TableFinder,
    discover,
    tables_by_form,
    tables_by_vmcoreinfo,
)
from tests.guests.lab import Guest, GuestConfig

SMALL_MIB, LARGE_MIB = 512, 3072
MOST = 1.5
ROUNDING = 1e-6
"""Of a start time in seconds, which the guest counts in whole ticks."""
WAYS = {"by the form of its tables": (tables_by_form,), "by VMCOREINFO": (tables_by_vmcoreinfo,)}


def discovery(machine: SyncMachine, finders: Sequence[TableFinder]) -> Side:
    """This starts from the registers and the memory of an attached guest, without a profile."""

    def side() -> float:
        began = time.perf_counter()
        discover(machine.machine.view, finders=finders)
        return time.perf_counter() - began

    return side


def check(guest: Guest, machine: SyncMachine) -> None:
    """This compares the processes with what the guest says of itself."""
    name = f"processes of {guest.config.memory_mib} MiB"
    truth = guest.settled_truth()
    told = [(task.pid, task.ppid, task.start_ticks) for task in truth.processes]
    rows = machine.guest.processes()
    ticks = [int(row.start_time_s * truth.clock_ticks + ROUNDING) for row in rows]
    agree(name, [(row.pid, row.ppid, at) for row, at in zip(rows, ticks, strict=True)], told)


def main(size: Size) -> None:
    """This races on two thawed guests that run at the same time."""
    lab = make_lab()
    small, large = (GuestConfig(kernel=KERNEL, memory_mib=mib) for mib in (SMALL_MIB, LARGE_MIB))
    with (
        lab.restore(small) as small_guest,
        lab.restore(large) as large_guest,
        qvmi.attach_sync(small_guest.qmp, use_cache=False) as in_small,
        qvmi.attach_sync(large_guest.qmp, use_cache=False) as in_large,
    ):
        check(small_guest, in_small)
        check(large_guest, in_large)
        for way, finders in WAYS.items():
            sides = discovery(in_large, finders), discovery(in_small, finders)
            mine, theirs = in_turns(size.of(full=30, quick=1), *sides)
            ratio = mine.median / theirs.median
            what = f"discovery of a {LARGE_MIB} MiB guest's kernel {way}"
            beside, target = f"in {SMALL_MIB} MiB {theirs}", f"at most {MOST}"
            tell_ratio(what, str(mine), ratio, beside=beside, target=target, reached=ratio <= MOST)


if __name__ == "__main__":
    run(main)
