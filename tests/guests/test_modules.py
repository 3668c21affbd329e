"""The modules that are seen are those of the guest's own /proc/modules, in its order."""

from collections.abc import Callable
from pathlib import Path

import qvmi
from qvmi import Listing, Module
from tests.asynchronous import asynchronous
from tests.guests.lab import Guest

LOADABLE = "ifb"
"""A module that the guests carry and do not load."""


def _seen(listing: Listing[Module]) -> list[tuple[str, int, int, str]]:
    assert not listing.gaps
    return [(row.name, row.address, row.size, row.state) for row in listing]


def _true(guest: Guest) -> list[tuple[str, int, int, str]]:
    rows = guest.truth().modules
    return [(row.name, row.address, row.size, row.state.lower()) for row in rows]


@asynchronous
async def test_equals_proc_modules(
    guest: Guest, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        seen = _seen(machine.guest.modules())
    assert seen == _true(guest)
    proof_count(len(seen))


@asynchronous
async def test_a_module_is_seen_from_loading_to_unloading(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        before = _seen(machine.guest.modules())
        guest.ask(f"load {LOADABLE}")
        loaded = _seen(machine.guest.modules())
        assert loaded == _true(guest)
        assert [row[0] for row in loaded] == [LOADABLE, *(row[0] for row in before)]
        guest.ask(f"unload {LOADABLE}")
        assert _seen(machine.guest.modules()) == before


@asynchronous
async def test_each_row_lies_in_memory_that_the_kernel_maps(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        space = machine.kernel_space
        for row in machine.guest.modules():
            assert space.walk(row.address).permissions.executable
            assert row.name.encode() in space.read(row.struct_address, 128)
