"""Functions that are hooked into the kernel from outside, as a rootkit would have hooked them."""

import struct

import pytest

from qvmi.codepacks.detectors.kernel_hooks import KernelHooks
from qvmi.codepacks.observed_guest import ObservedGuest
from tests.guests.kernel_packs.hooked_in import HOOKS, WORD, Hook, hooked, packets
from tests.guests.kernel_packs.tampered_kernel import NOBODYS, Tampered


def test_a_guest_that_was_left_alone_has_no_finding_and_many_hooks(kernel: Tampered) -> None:
    pack = KernelHooks()
    assert kernel.look(pack) == []
    assert kernel.look(pack) == []
    listed = kernel.linux.hooks()
    assert len(listed) > 400
    assert {row.owner for row in listed} >= {"kernel", "bridge"}


@pytest.mark.parametrize("hook", HOOKS)
def test_a_function_of_a_listed_module_is_no_alarm(kernel: Tampered, hook: Hook) -> None:
    function = kernel.symbols["veth_open"]
    with hooked(kernel, hook, function) as (table, place):
        assert kernel.look(KernelHooks()) == []
        row = kernel.linux.hooks().find(place=place)
    assert row is not None
    assert (row.table, row.target, row.owner) == (table, function, "veth")


def test_a_chain_that_is_a_loop_is_a_gap(kernel: Tampered) -> None:
    first = kernel.pointer(kernel.symbols["netdev_chain"])
    pack = KernelHooks()
    observed = ObservedGuest(kernel.linux, pack.name)
    with kernel.pointing((first + kernel.offset("notifier_block", "next"), first)):
        assert list(pack.inspect(observed, kernel.memory)) == []
    [gap] = observed.gaps
    assert (gap.structure, gap.address) == ("netdev_chain", first)


def test_more_hooks_than_there_can_be_are_a_gap(kernel: Tampered) -> None:
    _, place, writes = packets(kernel, NOBODYS)
    pack = KernelHooks()
    observed = ObservedGuest(kernel.linux, pack.name)
    with kernel.pointing(*writes), kernel.altered(place - WORD, struct.pack("<Q", 0xFFFF)):
        assert list(pack.inspect(observed, kernel.memory)) == []
    [gap] = observed.gaps
    assert (gap.structure, gap.reason[:5]) == ("nf_hook_entries", "65535")
