"""A kernel that lies where detectors look: each look ends, and raises only what a codepack may."""

import random
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

import pytest

from qvmi.cli.declared.words import PACKS
from qvmi.codepacks.codepack import Codepack, Finding
from qvmi.codepacks.observed_guest import ObservedGuest
from qvmi.codepacks.resource_fetch import wants_resources
from qvmi.codepacks.resources import equipped
from qvmi.errors import QvmiError
from qvmi.symbols.layout import address
from qvmi.testing import fake_disk_difference, fake_flow, fake_resources
from tests.built_in_packs import made
from tests.guests.test_hostile_views import NOWHERE, Den, den
from tests.hostile.bounds import cpu_seconds
from tests.proofs import proof_size

__all__ = ["den"]

FEW_SECONDS: Final = 30.0
"""Of processor time: a bound, far from what any of these takes."""

SHOWN: Final = fake_resources(
    disk_differences=[fake_disk_difference("/bin/sh")],
    flows=[fake_flow("192.0.2.7:443", pid=None)],
)
"""What has those look at the guest that are shown more than memory."""

_LINKS: Final = (
    ("children", 0),
    ("children", 8),
    ("sibling", 0),
    ("sibling", 8),
    ("thread_node", 0),
)
_POINTERS: Final = (
    *("signal", "thread_pid", "real_parent", "parent", "mm", "real_cred", "sighand", "nsproxy"),
)


def looked(pack: Codepack, den: Den) -> tuple[int, int]:
    """This lets a codepack look, and counts what it finds and what it could not see."""
    guest = ObservedGuest(den.linux, pack.name)
    if wants_resources(pack):
        pack = equipped(pack, SHOWN)
    found = 0
    try:
        for finding in pack.inspect(guest, den.linux.kernel.space.memory):
            found += isinstance(finding, Finding)
    except QvmiError:
        return found, guest.gap_count + 1
    return found, guest.gap_count


def lies(den: Den, seed: int) -> Iterator[tuple[int, bytes]]:
    """These are places in the tasks of some processes, and what is to be written there."""
    drawn = random.Random(seed)
    processes = [row for row in den.linux.processes() if row.pid > 1]
    for process in drawn.sample(processes, 6):
        member, behind = drawn.choice([*_LINKS, *((name, 0) for name in _POINTERS)])
        place = process.address + den.offset("task_struct", member) + behind
        others = (NOWHERE, 0, place, drawn.choice(processes).address, (1 << 64) - 8)
        yield place, drawn.choice(others).to_bytes(8, "little")


@pytest.mark.parametrize("name", PACKS)
def test_a_look_ends_whatever_is_written_into_tasks(den: Den, name: str) -> None:
    pack = made(name, 1.0)
    assert looked(pack, den)[1] == 0, "it cannot even see a guest that tells the truth"
    for seed in range(proof_size(ci=4, full=500)):
        with ExitStack() as stack:
            for place, lie in list(lies(den, seed)):
                stack.enter_context(den.ram.altered(den.pa(place), lie))
            stack.enter_context(cpu_seconds(FEW_SECONDS))
            looked(pack, den)


def _sightings(den: Den) -> tuple[set[int], int]:
    listing = den.linux.task_sightings()
    return {row.pid for row in listing}, len(listing.gaps)


def test_a_list_of_children_that_is_a_loop_is_a_gap_and_hides_nobody(den: Den) -> None:
    before, _ = _sightings(den)
    victim = den.process("tree-2")
    children = victim.address + den.offset("task_struct", "children")
    first = den.word(children)
    with den.ram.altered(den.pa(first), first.to_bytes(8, "little")), cpu_seconds(FEW_SECONDS):
        after, gaps = _sightings(den)
    assert after == before
    assert gaps > 0


@pytest.mark.parametrize("size", [0, 1, 0xFFFF_FFFF])
def test_a_cache_of_tasks_of_an_impossible_size_is_a_gap(den: Den, size: int) -> None:
    cache = den.word(address(den.linux.kernel.symbols, "task_struct_cachep"))
    place = cache + den.offset("kmem_cache", "size")
    with den.ram.altered(den.pa(place), size.to_bytes(4, "little")), cpu_seconds(FEW_SECONDS):
        listing = den.linux.task_sightings()
    assert [gap.structure for gap in listing.gaps] == ["slab of task_struct"]
    assert {row.pid for row in listing} >= {row.pid for row in den.linux.processes()}


def test_a_ring_of_hierarchies_is_a_gap(den: Den) -> None:
    first = den.word(address(den.linux.kernel.symbols, "cgroup_roots"))
    with den.ram.altered(den.pa(first), first.to_bytes(8, "little")), cpu_seconds(FEW_SECONDS):
        assert den.linux.cgroup_hierarchies().gaps
