"""A module that is loaded in earnest, and taken out of the kernel's structures one after the other."""

import struct
from contextlib import ExitStack
from typing import Final

import pytest

from qvmi.codepacks.codepack import Finding
from qvmi.codepacks.hidden_modules import HiddenModules
from qvmi.codepacks.observed_guest import ObservedGuest
from tests.guests.kernel_packs.tampered_kernel import HIDDEN_MODULE, Tampered

EVERY: Final = ("modules", "mod_tree", "module_kset", "module_bug_list", "memory")
NODES: Final = 8
"""A module has at most seven parts, each with a node in the tree of addresses."""


class Module:
    """This is the module, whose struct is where the guest's /proc/kallsyms has ``__this_module``."""

    def __init__(self, kernel: Tampered) -> None:
        self.kernel = kernel
        self.address = kernel.symbols[f"{HIDDEN_MODULE}:__this_module"]
        other = kernel.symbols["veth:__this_module"]
        self.other = other
        self.list = self.address + kernel.offset("module", "list")
        self.bugs = self.address + kernel.offset("module", "bug_list")
        kobject = self.address + kernel.offset("module", "mkobj")
        kobject += kernel.offset("module_kobject", "kobj")
        self.itself = self.address + kernel.offset("module", "mkobj")
        self.itself += kernel.offset("module_kobject", "mod")
        self.sysfs = kobject + kernel.offset("kobject", "entry")

    def owned_by(self) -> list[int]:
        """These are the places in it at which it says that a part is its own: ``mod_tree_node.mod``."""
        kernel, own = self.kernel, struct.pack("<Q", self.address)
        size = kernel.linux.kernel.symbols.size_of("module") or 0
        content = kernel.read(self.address, size)
        found = [at for at in range(0, size - 8, 8) if content[at : at + 8] == own]
        places = [self.address + at for at in found if self.address + at != self.itself]
        assert 1 <= len(places) <= NODES
        return places


@pytest.fixture
def module(kernel: Tampered) -> Module:
    return Module(kernel)


def views(finding: Finding, *, present: bool) -> list[str]:
    return [one.view for one in finding.evidence if one.present is present]


def test_a_guest_that_hides_none_has_no_finding_and_each_is_seen_everywhere(
    kernel: Tampered, module: Module
) -> None:
    assert kernel.look(HiddenModules()) == []
    rows = kernel.linux.module_sightings()
    mine = [row for row in rows if row.struct_address == module.address]
    assert [row.structure for row in mine] == [*EVERY]
    assert {row.name for row in mine} == {HIDDEN_MODULE}


def test_a_module_that_left_the_list_is_found_in_all_other_structures(
    kernel: Tampered, module: Module
) -> None:
    with kernel.unlinked(module.list):
        assert HIDDEN_MODULE not in {row.name for row in kernel.linux.modules()}
        [finding] = kernel.look(HiddenModules())
    assert views(finding, present=False) == ["modules"]
    assert views(finding, present=True) == [*EVERY[1:]]
    assert {one.address for one in finding.evidence if one.present} == {module.address}
    assert (finding.severity, finding.technique, finding.settle_s) == ("critical", "T1014", 0)
    assert kernel.look(HiddenModules()) == []


def test_a_module_that_left_every_structure_is_found_by_its_form(
    kernel: Tampered, module: Module
) -> None:
    elsewhere = [(place, module.other) for place in module.owned_by()]
    with (
        kernel.unlinked(module.list, module.bugs, module.sysfs),
        kernel.pointing(*elsewhere),
    ):
        [finding] = kernel.look(HiddenModules())
    assert views(finding, present=True) == ["memory"]
    assert finding.evidence[0].address == module.address


def test_so_is_one_that_points_to_itself_no_more_but_by_its_empty_lists(
    kernel: Tampered, module: Module
) -> None:
    places = [*module.owned_by(), module.itself]
    with ExitStack() as stack:
        stack.enter_context(kernel.unlinked(module.list, module.bugs, module.sysfs))
        stack.enter_context(kernel.pointing(*((place, module.other) for place in places)))
        [finding] = kernel.look(HiddenModules())
    assert views(finding, present=True) == ["memory"]


def test_a_module_that_only_left_sysfs_is_told_of(kernel: Tampered, module: Module) -> None:
    with kernel.unlinked(module.sysfs):
        [finding] = kernel.look(HiddenModules())
    assert views(finding, present=False) == ["module_kset"]
    assert finding.severity == "medium"


def test_a_module_that_is_not_live_has_time_to_come_or_go(kernel: Tampered, module: Module) -> None:
    state = module.address + kernel.offset("module", "state")
    unformed = struct.pack("<I", 3)
    with kernel.unlinked(module.list), kernel.altered(state, unformed):
        [finding] = kernel.look(HiddenModules())
    assert finding.settle_s > 5


def test_a_tree_that_is_a_loop_is_a_gap(kernel: Tampered, module: Module) -> None:
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
