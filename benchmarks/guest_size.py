"""How long discovery takes in a guest of 3 GiB, against one of 512 MiB that runs the same.

``python benchmarks/guest_size.py [--quick]``. Without a profile, discovery reads the kernel's image, which
is as large in both. Where that does not lead to the symbols, RAM is searched for VMCOREINFO: told here by
the data in the guest's RAM, which grows with its size, while holes are skipped. The guests' own
words are the check.
"""

import time
from collections.abc import Sequence

from looks import KERNEL, make_lab, same_as_guest_says
from race import Side, Size, Times, in_turns, run, tell_ratio

import qvmi
from qvmi import SyncMachine
from qvmi.semantics.linux.image.kallsyms import FINDERS, TableFinder, tables_by_vmcoreinfo
from qvmi.semantics.linux.kernel.discovery import discover
from tests.guests.lab import GuestConfig

SMALL_MIB, LARGE_MIB = 512, 3072
MOST = 1.5


def discovery(machine: SyncMachine, finders: Sequence[TableFinder]) -> Side:
    """This starts from the registers and the memory of an attached guest, without a profile."""

    def side() -> float:
        began = time.perf_counter()
        discover(machine.machine.view, finders=finders)
        return time.perf_counter() - began

    return side


def data_mib(machine: SyncMachine) -> float:
    """This is how much of the guest's RAM is no hole."""
    return sum(data.size for data in machine.machine.memory.data_ranges()) / (1 << 20)


def tell_size(what: str, large: Times, small: Times, *, grown: float = 1.0) -> None:
    """This prints how much longer it took, for each byte that had to be looked at."""
    ratio = large.median / small.median / grown
    by = f", {grown:.2f} x the data" if grown > 1 else ""
    tell_ratio(
        what,
        f"{large}{by}",
        ratio,
        beside=f"in {SMALL_MIB} MiB {small}",
        target=f"at most {MOST}",
        reached=ratio <= MOST,
    )


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
        same_as_guest_says(f"processes of {SMALL_MIB} MiB", small_guest, in_small)
        same_as_guest_says(f"processes of {LARGE_MIB} MiB", large_guest, in_large)
        rounds = size.of(full=30, quick=1)
        sides = discovery(in_large, FINDERS), discovery(in_small, FINDERS)
        tell_size(f"discovery in a guest of {LARGE_MIB} MiB", *in_turns(rounds, *sides))
        search = (tables_by_vmcoreinfo,)
        sides = discovery(in_large, search), discovery(in_small, search)
        grown = data_mib(in_large) / data_mib(in_small)
        tell_size("the same by VMCOREINFO alone", *in_turns(rounds, *sides), grown=grown)


if __name__ == "__main__":
    run(main)
