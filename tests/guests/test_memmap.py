"""What each frame of RAM is used for is what the guest's own /proc/kpageflags says.

References: Linux include/uapi/linux/kernel-page-flags.h, include/linux/kernel-page-flags.h.
"""

import base64
import gzip
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

import qvmi
from qvmi.addr import PAGE_SIZE, Pa
from qvmi.errors import MemoryFault, SymbolsError
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.linux.image.vmcoreinfo import VmcoreInfo
from qvmi.semantics.linux.pages.memmap import MemMap, PageUse
from qvmi.semantics.linux.pages.page_flags import Use
from tests.asynchronous import asynchronous
from tests.guests.aarch64_guests import EVERY
from tests.guests.lab import KERNELS, Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool

SAID: Final = {
    # the bit of /proc/kpageflags, and what a frame that has it is used for
    32: Use.RESERVED,
    10: Use.FREE,
    7: Use.SLAB,
    26: Use.TABLE,
    12: Use.ANONYMOUS,
    23: Use.OFFLINE,
}
NO_PAGE, TAIL, LRU = 20, 16, 5
LEAST: Final = {Use.RESERVED: 1000, Use.FREE: 10_000, Use.SLAB: 1000, Use.TABLE: 200}
CHANGING: Final = 0.005
"""The part of the frames that a guest at rest may give another use meanwhile: reading /proc needs some."""
CONFIGS: Final = [*(GuestConfig(kernel=kernel) for kernel in KERNELS), *EVERY]


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda config: config.name)
def any_guest(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """This is a guest of each kernel of both architectures."""
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(request.param)


def frames(guest: Guest, name: str) -> "array[int]":
    """This is one of the files in /proc that has 64 bits for each frame."""
    text = guest.run(f"gzip -c /proc/{name} | base64")
    return array("Q", gzip.decompress(base64.b64decode(text)))


def uses(guest: LinuxGuest) -> dict[int, PageUse | None]:
    """These are all frames of RAM."""
    found: dict[int, PageUse | None] = {}
    for ram in guest.view.memory.ranges:
        found.update(
            enumerate(guest.memmap.uses(ram.start, ram.size // PAGE_SIZE), ram.start >> 12)
        )
    return found


def told(flags: int) -> Use | None:
    """This is the use that kpageflags tells; None where it has no bit for it."""
    return next((use for bit, use in SAID.items() if flags >> bit & 1), None)


@asynchronous
async def test_each_frame_is_used_for_what_the_guest_says(
    any_guest: Guest, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    before = frames(any_guest, "kpageflags")
    async with qvmi.attach(any_guest.qmp, cache=profiles) as machine:
        found = await machine.query(uses)
    after = frames(any_guest, "kpageflags")
    seen: Counter[Use] = Counter()
    wrong: dict[int, str] = {}
    for frame, use in found.items():
        if frame >= len(before) or before[frame] >> NO_PAGE & 1 or before[frame] != after[frame]:
            continue
        assert use is not None, f"frame {frame:#x} has a struct page"
        seen[use.use] += 1
        expected = told(before[frame])
        if use.use is not expected and (expected is not None or use.use in SAID.values()):
            wrong[frame] = f"{use.use} is {expected} ({before[frame]:#x})"
    assert len(wrong) <= CHANGING * len(found), (Counter(wrong.values()), len(found))
    assert all(seen[use] >= least for use, least in LEAST.items()), seen
    assert sum(seen.values()) > 0.9 * len(found)
    proof_count(sum(seen.values()))


@asynchronous
async def test_one_frame_is_told_as_among_all_and_its_struct_leads_back(
    any_guest: Guest, profiles: Path
) -> None:
    async with qvmi.attach(any_guest.qmp, cache=profiles) as machine, machine.paused():
        guest = machine.guest
        tails = 0
        for frame, use in list(uses(guest).items())[:: 1 + len(uses(guest)) // 20_000]:
            if use is None:
                continue
            pa = Pa(frame * PAGE_SIZE)
            assert guest.memmap.use_of(pa) == use
            assert guest.memmap.pa_of(guest.memmap.page_at(pa)) == pa
            assert guest.memmap.pa_of(use.page) == use.first <= pa
            tails += use.first < pa
        assert tails


@asynchronous
async def test_the_note_for_crash_dumps_is_not_needed_to_find_the_map(
    any_guest: Guest, profiles: Path
) -> None:
    async with qvmi.attach(any_guest.qmp, cache=profiles) as machine:
        guest = machine.guest
        without = MemMap(guest.kernel.space, guest.kernel.symbols, VmcoreInfo(None, {}))
        assert (without.base, without.flags.types) == (guest.memmap.base, guest.memmap.flags.types)


@asynchronous
async def test_a_frame_that_there_is_not_has_no_use(any_guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(any_guest.qmp, cache=profiles) as machine:
        memmap = machine.guest.memmap
        beyond = Pa(1 << 45)
        assert list(memmap.uses(beyond, 3)) == [None] * 3
        with pytest.raises(MemoryFault):
            memmap.use_of(beyond)


@asynchronous
async def test_a_lie_about_where_the_map_is_is_not_believed(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        kernel = machine.guest.kernel
        lying = kernel.symbols

        class Elsewhere:
            """The kernel's own symbols, but for the variable that says where the map is."""

            find_field, find_enumerator = lying.find_field, lying.find_enumerator
            size_of, nearest = lying.size_of, lying.nearest

            @staticmethod
            def find(name: str) -> qvmi.Va | None:
                return lying.find("linux_banner" if name == "vmemmap_base" else name)

        with pytest.raises(SymbolsError, match="no map at"):
            MemMap(kernel.space, Elsewhere(), VmcoreInfo(None, {}))
