"""The process list again and again, of a small guest and of one with 557 tasks, and the memory it takes.

``python benchmarks/process_list.py [--quick]``. Both sides read the same mapping of the same RAM file and
give the same ten fields of each process; qvmi also checks each row and each link for tearing. drgn runs in
two ways: member by member, as its own helpers do, and with each struct copied whole, which is the
fastest way that was found and reads each process only once.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import drgn
import msgspec
import peer_drgn
from looks import KERNEL, make_lab, stopped, vmlinux
from race import Side, Size, agree, in_turns, run, tell_ratio

import qvmi
from tests.guests.lab import Guest, GuestConfig

LEAST_SPEED_UP = 12.0
MOST_MEMORY_MIB = 100
MANY = 557
ENDS_S = 60

PEAK = """
import re
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""
"""Not getrusage: what it calls the peak of a process begins with that of its parent."""
OURS = """
import sys
import qvmi
with qvmi.attach_sync(sys.argv[1], use_cache=False) as machine:
    machine.guest.processes()
"""
THEIRS = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import peer_drgn
peer_drgn.processes(peer_drgn.attached(Path(sys.argv[1]), Path(sys.argv[2])))
"""


def lists(what: str, guest: Guest, program: drgn.Program, rounds: int) -> None:
    """This races the repeated list on one guest."""
    with qvmi.attach_sync(guest.qmp, use_cache=False) as machine:
        linux = machine.guest
        with stopped(guest):
            ours = [msgspec.structs.astuple(row) for row in linux.processes()]
            agree(what, ours, peer_drgn.processes(program))
            agree(f"{what}, structs copied", ours, peer_drgn.processes_copied(program))
        mine, by_member, copied = in_turns(
            rounds,
            timed(linux.processes),
            timed(lambda: peer_drgn.processes(program)),
            timed(lambda: peer_drgn.processes_copied(program)),
        )
    faster = by_member.median / mine.median
    tell_ratio(
        f"repeated list of {what}",
        f"{mine}, {mine.median / len(ours) * 1e6:.2f} us a task",
        faster,
        beside=f"drgn {by_member}",
        target=f"at least {LEAST_SPEED_UP:g}",
        reached=faster >= LEAST_SPEED_UP,
    )
    print(f"    drgn with structs copied whole {copied}, ratio {copied.median / mine.median:.2f}")


def timed(listing: Callable[[], object]) -> Side:
    """This takes the time of one list."""

    def side() -> float:
        began = time.perf_counter()
        listing()
        return time.perf_counter() - began

    return side


def fill(guest: Guest, count: int) -> None:
    """This starts processes that sleep until there are so many."""
    missing = count - len(guest.settled_truth().processes)
    loop = f"i=0; while [ $i -lt {missing} ]; do sleep 1000000 </dev/null >/dev/null 2>&1 & i=$((i+1)); done"
    guest.run(loop)


def memory(guest: Guest, debug_information: Path) -> None:
    """This compares the peak memory of fresh processes that attach and list once."""
    ours = peak_mib(OURS, guest.qmp)
    theirs = peak_mib(THEIRS, str(guest.ram_paths[0]), str(debug_information))
    tell_ratio(
        "peak memory of cold attach and list",
        f"{ours} MiB",
        theirs / ours,
        beside=f"drgn {theirs} MiB",
        target=f"below {MOST_MEMORY_MIB} MiB",
        reached=ours < MOST_MEMORY_MIB,
    )


def peak_mib(statements: str, *arguments: str) -> int:
    """This is the most memory that a new interpreter had resident, mapped guest RAM included."""
    ended = subprocess.run(
        [sys.executable, "-c", statements + PEAK, *arguments],
        stdout=subprocess.PIPE,
        timeout=ENDS_S,
        check=True,
    )
    return int(ended.stdout) >> 10


def main(size: Size) -> None:
    """This races on one thawed guest, before and after it is filled."""
    lab = make_lab()
    debug_information = vmlinux(lab)
    with lab.restore(GuestConfig(kernel=KERNEL)) as guest:
        program = peer_drgn.attached(guest.ram_paths[0], debug_information)
        rounds = size.of(full=100, quick=1)
        lists("the population", guest, program, rounds)
        fill(guest, size.of(full=MANY, quick=150))
        lists("many processes", guest, program, rounds)
        memory(guest, debug_information)


if __name__ == "__main__":
    run(main)
