"""A stack that lies: its frames end with a gap that says where, and cost no more than a bound."""

import random
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

import qvmi
from qvmi import Listing, Va
from qvmi.semantics.guest_os import Process, StackFrame
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.symbols.layout import address, field_offset
from tests.guests.aarch64_guests import aarch64
from tests.guests.lab import KERNELS, GuestConfig, Lab
from tests.guests.pool import GuestPool
from tests.guests.tampering import GuestRam, guest_ram
from tests.hostile.bounds import cpu_seconds

FEW_SECONDS: Final = 20.0
"""Of processor time: a bound, far from what any of these takes."""
MOST_ROWS: Final = 2000
WORD: Final = 8
STACK_SIZE: Final = 16 << 10
CONFIGS: Final = [*map(GuestConfig, KERNELS), aarch64(), aarch64("7.x-arm64")]
LIES: Final[Mapping[str, int]] = {
    "zero": 0,
    "nowhere": 0x4141414141414141,
    "user memory": 0x400000,
    "the kernel's last address": 0xFFFFFFFFFFFFFFFF,
}


@dataclass(frozen=True, slots=True)
class Den:
    """This is a guest that stands still, what was understood of it, and its memory to write to."""

    linux: LinuxGuest
    ram: GuestRam

    @property
    def sleeper(self) -> Process:
        return next(row for row in self.linux.processes() if row.name == "files")

    def stack(self) -> Listing[StackFrame]:
        with cpu_seconds(FEW_SECONDS):
            listing = self.linux.stack(self.sleeper)
        assert len(listing) <= MOST_ROWS
        assert [row.number for row in listing] == list(range(len(listing)))
        return listing

    @contextmanager
    def altered(self, va: int, data: bytes) -> Iterator[None]:
        """This changes what lies at an address; it must not cross a page."""
        with self.ram.altered(self.linux.kernel.space.translate(Va(va)), data):
            yield

    @property
    def saved_at(self) -> int:
        """This is where the stack pointer of the sleeper is, on aarch64 its frame pointer."""
        symbols, task = self.linux.kernel.symbols, self.sleeper.address
        thread = field_offset(symbols, "task_struct", "thread")
        context = symbols.find_field("thread_struct", ("cpu_context",))
        if context is None:
            return task + thread + field_offset(symbols, "thread_struct", "sp")
        return task + thread + context.offset + field_offset(symbols, "cpu_context", "fp")


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda one: one.kernel)
def den(lab: Lab, request: pytest.FixtureRequest, profiles: Path) -> Iterator[Den]:
    config: GuestConfig = request.param
    with ExitStack() as stack:
        guest = GuestPool(lab, stack).restore(config, paused=True)
        machine = stack.enter_context(qvmi.attach_sync(guest.qmp, cache=profiles))
        yield Den(machine.guest, stack.enter_context(guest_ram(guest)))


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_return_address_that_lies_ends_what_is_reliable_with_a_gap(den: Den, lie: int) -> None:
    before = den.stack()
    assert not before.gaps
    victim = before.items[3]
    assert victim.place
    with den.altered(victim.place, struct.pack("<Q", lie)):
        listing = den.stack()
    assert listing.gaps
    assert listing.items[:3] == before.items[:3]
    assert all(row.address != lie for row in listing)
    assert {row.how for row in listing.items[3:]} <= {"scan"}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_saved_pointer_that_leads_nowhere_is_a_gap(den: Den, lie: int) -> None:
    with den.altered(den.saved_at, struct.pack("<Q", lie)):
        listing = den.stack()
    assert listing.gaps
    assert sum(row.reliable for row in listing) <= 1
    assert {row.how for row in listing.items[1:]} <= {"scan"}
    assert not den.stack().gaps


def test_a_stack_that_is_a_loop_ends_with_a_gap(den: Den) -> None:
    before = den.stack()
    if (
        before.items[1].how == "orc"
    ):  # a caller is found by adding: it can only be led to other code
        inner, outer = before.items[1], before.items[-2]
        assert inner.place
        assert outer.place
        with den.altered(outer.place, struct.pack("<Q", inner.address)):
            assert den.stack().items[: outer.number] == before.items[: outer.number]
        return
    record = before.items[3].place
    assert record
    with den.altered(record - WORD, struct.pack("<Q", record - WORD)):
        listing = den.stack()
    assert "leads back" in listing.gaps[0].reason
    assert [row.reliable for row in listing.items[:3]] == [True] * 3


@pytest.mark.parametrize("seed", range(4))
def test_a_stack_of_nothing_but_return_addresses_is_bounded(den: Den, seed: int) -> None:
    chance = random.Random(seed)
    symbols = den.linux.kernel.symbols
    start, end = address(symbols, "_stext"), address(symbols, "_etext")
    before = den.stack()
    first, last = before.items[1].place, before.items[-1].place
    assert first
    assert last
    words = [chance.choice((chance.randrange(start, end), first, last)) for _ in range(512)]
    with ExitStack() as stack:
        for at in range(first, first - first % STACK_SIZE + STACK_SIZE, WORD):
            stack.enter_context(den.altered(at, struct.pack("<Q", words[at // WORD % 512])))
        listing = den.stack()
    assert listing.items
    again = den.stack()
    assert (again.items, again.gaps) == (before.items, before.gaps)


def test_a_task_with_another_stack_is_not_believed(den: Den) -> None:
    at = den.sleeper.address + field_offset(den.linux.kernel.symbols, "task_struct", "stack")
    with den.altered(at, struct.pack("<Q", 0x4141414141414000)):
        listing = den.stack()
    assert not any(row.reliable for row in listing.items[1:])
