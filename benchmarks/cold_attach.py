"""From a kernel never seen before to its full process list: qvmi, and drgn with debug information.

``python benchmarks/cold_attach.py [--quick]`` boots twenty guests, each with its kernel at another
place, and attaches to each a few times as if for the first time. qvmi starts from QEMU's socket, drgn
from the RAM file and the kernel's debug package on disk. On the 5.10 kernel, which has no index of
its symbols' names, there is no peer: the guest's own word is the check.
"""

import asyncio

from looks import KERNEL, cold, drgn_cold, make_lab, same_as_guest_says, same_processes, vmlinux
from race import Size, Times, in_turns, run, tell

import qvmi
from tests.guests.lab import GuestConfig, Lab

WITHOUT_INDEX = "5.10"
LIMIT_S = 0.040
LIMIT_WITHOUT_INDEX_S = 0.4


def boots(runner: asyncio.Runner, lab: Lab, size: Size) -> None:
    """This races on guests that were booted, not thawed: KASLR has moved each kernel elsewhere."""
    debug_information = vmlinux(lab)
    count = size.of(full=20, quick=1)
    ours: list[float] = []
    theirs: list[float] = []
    starts: set[int] = set()
    for number in range(count):
        make = lab.restore if size.quick else lab.boot
        with make(GuestConfig(kernel=KERNEL)) as guest:
            with qvmi.attach_sync(guest.qmp, use_cache=False) as machine:
                starts.add(machine.guest.facts().kernel_base)
            same_processes(f"processes, boot {number + 1}", guest, debug_information)
            sides = cold(runner, guest), drgn_cold(guest, debug_information)
            mine, peers = in_turns(size.of(full=5, quick=1), *sides)
            ours.append(mine.median)
            theirs.append(peers.median)
    what = f"cold attach to process list, {KERNEL}, {count} boots, kernel at {len(starts)} places"
    tell(what, Times(ours), limit_s=LIMIT_S, peer="drgn", theirs=Times(theirs))


def without_index(runner: asyncio.Runner, lab: Lab, size: Size) -> None:
    """This attaches to a kernel whose symbols must all be decoded."""
    with lab.restore(GuestConfig(kernel=WITHOUT_INDEX)) as guest:
        with qvmi.attach_sync(guest.qmp, use_cache=False) as machine:
            same_as_guest_says(f"processes, {WITHOUT_INDEX}", guest, machine)
        (times,) = in_turns(size.of(full=10, quick=1), cold(runner, guest))
    tell(f"cold attach to process list, {WITHOUT_INDEX}", times, limit_s=LIMIT_WITHOUT_INDEX_S)


def main(size: Size) -> None:
    """This races on both kernels."""
    lab = make_lab()
    with asyncio.Runner() as runner:
        boots(runner, lab, size)
        without_index(runner, lab, size)


if __name__ == "__main__":
    run(main)
