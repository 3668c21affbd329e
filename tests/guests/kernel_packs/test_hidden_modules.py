"""A module that is loaded in earnest, and taken out of the kernel's structures one after the other."""

import struct
from typing import Final

import pytest

from qvmi.codepacks.detectors.hidden_modules import HiddenModules
from qvmi.codepacks.observed_guest import ObservedGuest
from tests.guests.kernel_packs.module_places import ModulePlaces
from tests.guests.kernel_packs.tampered_kernel import HIDDEN_MODULE, Tampered

EVERY: Final = ("modules", "mod_tree", "module_kset", "module_bug_list", "memory")


@pytest.fixture
def module(kernel: Tampered) -> ModulePlaces:
    return ModulePlaces(kernel)


def test_a_guest_that_hides_none_has_no_finding_and_each_is_seen_everywhere(
    kernel: Tampered, module: ModulePlaces
) -> None:
    assert kernel.look(HiddenModules()) == []
    rows = kernel.linux.module_sightings()
    mine = [row for row in rows if row.struct_address == module.address]
    assert [row.structure for row in mine] == [*EVERY]
    assert {row.name for row in mine} == {HIDDEN_MODULE}


def test_a_module_that_is_not_live_has_time_to_come_or_go(
    kernel: Tampered, module: ModulePlaces
) -> None:
    state = module.address + kernel.offset("module", "state")
    unformed = struct.pack("<I", 3)
    with kernel.unlinked(module.list), kernel.altered(state, unformed):
        [finding] = kernel.look(HiddenModules())
    assert finding.settle_s > 5


def test_a_tree_that_is_a_loop_is_a_gap(kernel: Tampered, module: ModulePlaces) -> None:
    node = module.owned_by()[0] - kernel.offset("mod_tree_node", "mod")
    node += kernel.offset("mod_tree_node", "node")
    size = kernel.linux.kernel.symbols.size_of("rb_node") or 0
    left = kernel.offset("rb_node", "rb_left")
    pack = HiddenModules()
    observed = ObservedGuest(kernel.linux, pack.name)
    loops = [(node + tree * size + left, node + tree * size) for tree in range(2)]
    with kernel.pointing(*loops):
        list(pack.inspect(observed, kernel.memory))
    assert {gap.structure for gap in observed.gaps} == {"mod_tree"}
