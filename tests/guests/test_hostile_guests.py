"""A kernel that lies in its own structures: what is true beside the lie is listed, with a gap."""

import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final, TypeVar

import pytest

import qvmi
from qvmi import Listing, Pa, Process, Va
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.symbols.layout import address, field_offset
from tests.guests.lab import KERNELS, Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool
from tests.guests.tampering import GuestRam, guest_ram
from tests.hostile.bounds import cpu_seconds

FEW_SECONDS: Final = 20.0
"""Of processor time: a bound, far from what any of these takes."""
STACK_BYTES: Final = 16 << 10
"""Each task has a kernel stack of its own (THREAD_SIZE): so many are the most that RAM can hold."""
PAGE: Final = 4096
COPIED: Final = {"pid": 4, "tgid": 4, "comm": 16, "real_cred": 8, "real_parent": 8}
"""What of a task must be right for it to be listed, with its size in bytes."""


Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Lair:
    """This is a guest that stands still, what was understood of it, and its memory to write to.

    Attributes:
        honest: its processes before anything was altered.
        victim: one in the middle of the list.
    """

    linux: LinuxGuest
    ram: GuestRam
    honest: tuple[Process, ...]
    victim: Process

    def offset(self, type_name: str, *names: str) -> int:
        return field_offset(self.linux.kernel.symbols, type_name, *names)

    def pa(self, va: int) -> Pa:
        return self.linux.kernel.space.translate(Va(va))

    def word(self, va: int) -> int:
        return int.from_bytes(self.linux.kernel.space.read(Va(va), 8), "little")

    @property
    def link(self) -> int:
        """This is where the victim's ``tasks`` lie."""
        return self.victim.address + self.offset("task_struct", "tasks")


@pytest.fixture(scope="module", params=KERNELS)
def lair(lab: Lab, request: pytest.FixtureRequest, profiles: Path) -> Iterator[Lair]:
    with ExitStack() as stack:
        guest: Guest = GuestPool(lab, stack).restore(GuestConfig(request.param), paused=True)
        machine = stack.enter_context(qvmi.attach_sync(guest.qmp, cache=profiles))
        ram = stack.enter_context(guest_ram(guest))
        honest = machine.guest.processes().items
        victim = next(row for row in honest if row.name == "httpd")
        yield Lair(machine.guest, ram, honest, victim)


WRONG_NEXT: Final[dict[str, Callable[[Lair], int]]] = {
    "nothing": lambda _: 0,
    "not-canonical": lambda _: 0x4141414141414141,
    "user-memory": lambda _: 0x400000,
    "itself": lambda lair: lair.link,
    "an-earlier-one": lambda lair: lair.honest[0].address + lair.offset("task_struct", "tasks"),
    "kernel-text": lambda lair: lair.linux.kernel.image.start + 0x1001,
    "the-last-byte": lambda _: 0xFFFFFFFFFFFFFFFF,
}
"""Where a task may say that the next one is."""


@pytest.mark.parametrize("next_link", WRONG_NEXT.values(), ids=WRONG_NEXT)
def test_a_wrong_link_is_a_gap_and_hides_nobody(
    lair: Lair, next_link: Callable[[Lair], int]
) -> None:
    with lair.ram.altered(lair.pa(lair.link), struct.pack("<Q", next_link(lair))):
        listing = _look(lair.linux.processes)
    assert listing.gaps
    assert {row.pid for row in listing} == {row.pid for row in lair.honest}


def test_who_can_be_reached_from_neither_side_is_behind_a_gap(lair: Lair) -> None:
    place = lair.honest.index(lair.victim)
    unreachable, later = lair.honest[place + 1 : place + 3], lair.honest[place + 3]
    back = later.address + lair.offset("task_struct", "tasks") + 8
    with (
        lair.ram.altered(lair.pa(lair.link), struct.pack("<Q", 0xDEAD)),
        lair.ram.altered(lair.pa(back), struct.pack("<Q", 0xBEEF)),
    ):
        listing = _look(lair.linux.processes)
    assert listing.gaps
    assert {row.pid for row in lair.honest} - {row.pid for row in listing} == {
        row.pid for row in unreachable
    }


MEMBERS: Final[dict[str, tuple[str, bytes]]] = {
    "name-without-end": ("comm", b"A" * 16),
    "pid-of-another-group": ("pid", struct.pack("<I", 4711)),
    "pid-too-large": ("pid", struct.pack("<II", 1 << 31, 1 << 31)),
    "credentials-nowhere": ("real_cred", struct.pack("<Q", 0x4141414141414141)),
    "parent-nowhere": ("real_parent", struct.pack("<Q", 0x10)),
}
"""A member of a task and what it holds that cannot be."""


@pytest.mark.parametrize(("member", "wrong"), MEMBERS.values(), ids=MEMBERS)
def test_a_task_that_cannot_be_is_a_gap_and_hides_nobody_else(
    lair: Lair, member: str, wrong: bytes
) -> None:
    place = lair.victim.address + lair.offset("task_struct", member)
    with lair.ram.altered(lair.pa(place), wrong):
        listing = _look(lair.linux.processes)
    assert listing.gaps
    others = {row.pid for row in lair.honest} - {lair.victim.pid}
    assert others <= {row.pid for row in listing}


def test_a_list_without_end_ends_at_what_ram_can_hold(lair: Lair) -> None:
    """The victim is followed by tasks that look right, one a page, for ever: the last is the first."""
    first, count = _unused_pages(lair)
    most = lair.ram.buffer.size() // STACK_BYTES
    assert count > most
    with lair.ram.altered(first, bytes(count * PAGE)):
        chain = _forge(lair, first, count)
        with lair.ram.altered(lair.pa(lair.link), struct.pack("<Q", chain)):
            listing = _look(lair.linux.processes)
    assert listing.gaps
    assert most < len(listing) < most + len(lair.honest) + 2


def _unused_pages(lair: Lair) -> tuple[Pa, int]:
    """This is the longest run of RAM that the guest has never touched, and its pages."""
    data = lair.linux.kernel.space.memory.data_ranges()
    size, start = max((after.start - run.end, run.end) for run, after in pairwise(data))
    return start, size // PAGE - 2


def _forge(lair: Lair, first: Pa, count: int) -> int:
    """This makes tasks, each like the victim but for its links; it returns the first one's link."""
    space = lair.linux.kernel.space
    copied = [
        (offset, space.read(Va(lair.victim.address + offset), size))
        for name, size in COPIED.items()
        for offset in [lair.offset("task_struct", name)]
    ]
    direct_map = lair.word(address(lair.linux.kernel.symbols, "page_offset_base"))
    tasks = first + lair.offset("task_struct", "tasks")
    links = [direct_map + tasks + number * PAGE for number in range(count)]
    for number in range(count):
        before, after = links[number - 1] if number else lair.link, links[(number + 1) % count]
        lair.ram.write(Pa(tasks + number * PAGE), struct.pack("<QQ", after, before))
        for offset, value in copied:
            lair.ram.write(Pa(first + number * PAGE + offset), value)
    return links[0]


def test_a_loop_in_the_pid_table_is_a_gap(lair: Lair) -> None:
    root = (
        address(lair.linux.kernel.symbols, "init_pid_ns")
        + lair.offset("pid_namespace", "idr")
        + lair.offset("idr", "idr_rt")
        + lair.offset("xarray", "xa_head")
    )
    node = lair.word(root)
    slot = lair.pa(node - 2 + lair.offset("xa_node", "slots") + 8)
    with lair.ram.altered(slot, struct.pack("<Q", node)):
        listing = _look(lair.linux.process_ids)
    assert listing.gaps
    assert len(listing) <= len(lair.honest)


def test_a_thread_list_that_leads_nowhere_is_a_gap_of_that_process(lair: Lair) -> None:
    place = lair.victim.address + lair.offset("task_struct", "signal")
    before = _look(lair.linux.threads)
    with lair.ram.altered(lair.pa(place), struct.pack("<Q", 0x4141414141414141)):
        listing = _look(lair.linux.threads)
    assert [gap.address for gap in listing.gaps] == [lair.victim.address]
    assert {t.pid for t in before} - {t.pid for t in listing} == {lair.victim.pid}


def test_a_module_list_that_leads_nowhere_is_a_gap_and_hides_nobody(lair: Lair) -> None:
    before = _look(lair.linux.modules)
    link = before.items[1].struct_address + lair.offset("module", "list")
    with lair.ram.altered(lair.pa(link), struct.pack("<Q", 0x4141414141414141)):
        listing = _look(lair.linux.modules)
    assert listing.gaps
    assert {row.name for row in listing} == {row.name for row in before}


def _look(question: Callable[[], Listing[Row]]) -> Listing[Row]:
    with cpu_seconds(FEW_SECONDS):
        return question()
