"""The memory of a real guest, made wrong in a private copy of it."""

import mmap
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from random import Random

import pytest

from qvmi.addr import Pa, PaRange, Va
from qvmi.arch.registers import INFO_REGISTERS
from qvmi.arch.x86_64 import Registers, parse_registers
from qvmi.errors import MemoryFault, QvmiError, UnknownGuest
from qvmi.memory.physical import Window
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.linux.kernel.discovery import Kernel, discover
from qvmi.view import Provenance, Taken, View
from tests.guests.lab import KERNELS, Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool
from tests.hostile.bounds import cpu_seconds

ROUNDS = 20
WRONG_WORDS = 8
MOST_GAPS = 3000
QUESTIONS = (
    *("processes", "process_ids", "threads", "modules", "module_symbols", "module_types"),
    *("credentials", "namespaces", "cgroups"),
)


class PrivateCopy:
    """This is a guest's RAM, whose pages are copied when the test writes to them."""

    description = "a private copy of a RAM file"

    def __init__(self, guest: Guest) -> None:
        with guest.ram_paths[0].open("rb") as file:
            self.buffer = mmap.mmap(
                file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
            )
        self.end = Pa(len(self.buffer))

    @property
    def ranges(self) -> Sequence[PaRange]:
        return [PaRange(Pa(0), self.end)]

    @property
    def windows(self) -> Sequence[Window]:
        return [Window(Pa(0), self.end, self.buffer, 0)]

    def read(self, pa: Pa, size: int) -> bytes:
        if not 0 <= pa <= pa + size <= self.end:
            raise MemoryFault(pa, size)
        return self.buffer[pa : pa + size]

    def word(self, pa: int) -> int:
        return int.from_bytes(self.buffer[pa : pa + 8], "little")

    def write(self, pa: int, word: int) -> None:
        self.buffer[pa : pa + 8] = word.to_bytes(8, "little")

    def data_ranges(self) -> Iterator[PaRange]:
        yield from self.ranges

    def close(self) -> None:
        self.buffer.close()


@dataclass
class World:
    """A guest that stands still, what was understood of it, and where its structures lie."""

    ram: PrivateCopy
    vcpus: tuple[Registers, ...]
    places: list[int]

    def view(self) -> View:
        return View(self.vcpus, self.ram, Provenance(Taken.PAUSED, at=1.0))


@pytest.fixture(scope="module", params=KERNELS)
def world(lab: Lab, request: pytest.FixtureRequest) -> Iterator[World]:
    with ExitStack() as stack:
        guest = GuestPool(lab, stack).restore(GuestConfig(kernel=request.param), paused=True)
        vcpus = parse_registers(guest.monitor.human(INFO_REGISTERS))
        made = World(PrivateCopy(guest), vcpus, [])
        inside = LinuxGuest(made.view(), discover(made.view()))
        ask_everything(inside)
        made.places = sorted(places_of(inside.kernel, inside))
        yield made
        made.ram.close()


def places_of(kernel: Kernel, inside: LinuxGuest) -> set[int]:
    """Physical addresses of words that something was read from: all of them matter."""
    assert kernel.profile is not None
    tables, fields = kernel.profile.tables, kernel.profile.fields

    def members(type_name: str, address: int) -> list[int]:
        prefix = f"{type_name}."
        return [
            address + one.offset for key, one in fields.items() if one and key.startswith(prefix)
        ]

    starts: list[int] = [at for at in kernel.profile.symbols.values() if at and at >> 63]
    starts += [tables.names, tables.markers, tables.token_table, tables.token_index, tables.offsets]
    words = [start + at for start in starts for at in range(0, 0x80, 8)]
    for process in inside.processes():
        words += members("task_struct", process.address)
    for module in inside.modules():
        words += members("module", module.struct_address)
    for one in inside.credentials():
        words += members("cred", one.real_cred)
    for group in inside.cgroups():
        words += members("cgroup", group.address)
    found: set[int] = set()
    for word in words:
        with suppress(MemoryFault):
            found.add(kernel.space.translate(Va(word)) & ~7)
    for start in starts:
        with suppress(MemoryFault):
            found |= {step.address for step in kernel.space.walk(Va(start)).steps}
    return found


def ask_everything(inside: LinuxGuest) -> None:
    for question in QUESTIONS:
        with suppress(QvmiError):
            assert len(getattr(inside, question)().gaps) < MOST_GAPS


def wrong_word(random: Random, world: World, was: int) -> int:
    """A word that means something: a bit changed, a word from elsewhere, a huge or a tiny number."""
    elsewhere = world.ram.word(random.choice(world.places))
    numbers = [0, 1, 0xFF, 1 << 31, 1 << 63, (1 << 64) - 1, random.getrandbits(64)]
    return random.choice([was ^ 1 << random.randrange(64), elsewhere, random.choice(numbers)])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("late", [False, True], ids=["from the start", "after it was understood"])
def test_a_real_guest_gone_wrong_is_answers_gaps_or_errors_of_ours(
    world: World, *, late: bool
) -> None:
    random = Random(f"{world.vcpus[0].cr3} {late}")
    for _ in range(ROUNDS):
        inside = LinuxGuest(world.view(), discover(world.view())) if late else None
        before = {
            place: world.ram.word(place) for place in random.sample(world.places, WRONG_WORDS)
        }
        for place, word in before.items():
            world.ram.write(place, wrong_word(random, world, word))
        try:
            with cpu_seconds(60), suppress(UnknownGuest):
                ask_everything(inside or LinuxGuest(world.view(), discover(world.view())))
        finally:
            for place, word in before.items():
                world.ram.write(place, word)
