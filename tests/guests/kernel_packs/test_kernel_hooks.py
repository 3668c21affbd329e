"""Functions that are hooked into the kernel from outside, as a rootkit would have hooked them."""

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from qvmi.codepacks.kernel_hooks import KernelHooks
from qvmi.codepacks.observed_guest import ObservedGuest
from tests.guests.kernel_packs.tampered_kernel import NOBODYS, Tampered

LOCAL_IN: Final = 1
"""include/uapi/linux/netfilter.h, ``NF_INET_LOCAL_IN``."""
WORD: Final = 8

Hook = Callable[[Tampered, int], tuple[str, int, list[tuple[int, int]]]]
"""Takes where a function is, and gives the table, the place that leads to it, and what is to be written."""


def notifier(kernel: Tampered, function: int) -> tuple[str, int, list[tuple[int, int]]]:
    """A block of a chain that there is, with another function: ``notifier_block.notifier_call``."""
    first = kernel.pointer(kernel.symbols["netdev_chain"])
    place = first + kernel.offset("notifier_block", "notifier_call")
    return "netdev_chain", place, [(place, function)]


def packets(kernel: Tampered, function: int) -> tuple[str, int, list[tuple[int, int]]]:
    """``struct nf_hook_entries`` with one hook, for all packets to the guest."""
    entries = kernel.room()
    place = kernel.symbols["init_net"] + kernel.offset("net", "nf")
    place += kernel.offset("netns_nf", "hooks_ipv4") + LOCAL_IN * WORD
    return "netfilter", entries + WORD, [(entries, 1), (entries + WORD, function), (place, entries)]


def tracepoint(kernel: Tampered, function: int) -> tuple[str, int, list[tuple[int, int]]]:
    """An array of ``struct tracepoint_func``, ended by one without a function."""
    functions = kernel.room()
    place = kernel.symbols["__tracepoint_sched_switch"] + kernel.offset("tracepoint", "funcs")
    writes = [(functions + at * WORD, 0) for at in range(1, 6)]
    return "tracepoint", functions, [(functions, function), *writes, (place, functions)]


def tracer(kernel: Tampered, function: int) -> tuple[str, int, list[tuple[int, int]]]:
    """A ``struct ftrace_ops`` in front of the others."""
    ops, head = kernel.room(), kernel.symbols["ftrace_ops_list"]
    writes = [(ops + at, 0) for at in range(0, 256, WORD)]
    writes.append((ops + kernel.offset("ftrace_ops", "next"), kernel.pointer(head)))
    place = ops + kernel.offset("ftrace_ops", "func")
    return "ftrace_ops_list", place, [*writes, (place, function), (head, ops)]


def probe(kernel: Tampered, function: int) -> tuple[str, int, list[tuple[int, int]]]:
    """A ``struct kprobe`` in the first row of their table."""
    own, head = kernel.room(), kernel.symbols["kprobe_table"]
    writes = [(own + at, 0) for at in range(0, 128, WORD)]
    writes.append((own + kernel.offset("kprobe", "hlist"), kernel.pointer(head)))
    writes.append((own + kernel.offset("kprobe", "addr"), kernel.symbols["vfs_read"]))
    place = own + kernel.offset("kprobe", "pre_handler")
    return "kprobe_table", place, [*writes, (place, function), (head, own)]


def security(kernel: Tampered, function: int) -> tuple[str, int, list[tuple[int, int]]]:
    """The function of a security module that is asked before a file is opened."""
    heads = kernel.symbols.get("security_hook_heads")
    if heads is not None:
        node = kernel.pointer(heads + kernel.offset("security_hook_heads", "file_open"))
        place = node + kernel.offset("security_hook_list", "hook")
        return "security_hook_heads", place, [(place, function)]
    calls = kernel.symbols["static_calls_table"]
    calls += kernel.offset("lsm_static_calls_table", "file_open")
    used = kernel.pointer(calls + kernel.offset("lsm_static_call", "hl"))
    place = used + kernel.offset("security_hook_list", "hook")
    return "security_hook_list", place, [(place, function)]


EVERY: Final = (notifier, packets, tracepoint, tracer, probe, security)


@contextmanager
def hooked(kernel: Tampered, hook: Hook, function: int) -> Iterator[tuple[str, int]]:
    table, place, writes = hook(kernel, function)
    with kernel.pointing(*writes):
        yield table, place


def test_a_guest_that_was_left_alone_has_no_finding_and_many_hooks(kernel: Tampered) -> None:
    pack = KernelHooks()
    assert kernel.look(pack) == []
    assert kernel.look(pack) == []
    listed = kernel.linux.hooks()
    assert len(listed) > 400
    assert {row.owner for row in listed} >= {"kernel", "bridge"}


@pytest.mark.parametrize("hook", EVERY)
def test_a_function_that_is_nobodys_is_told_with_where_it_is_hooked_in(
    kernel: Tampered, hook: Hook
) -> None:
    with hooked(kernel, hook, NOBODYS) as (table, place):
        found = kernel.look(KernelHooks())
    assert kernel.look(KernelHooks()) == []
    finding = next(one for one in found if one.evidence[0].address == place)
    assert (finding.evidence[0].view, finding.evidence[0].address) == (table, place)
    assert (finding.evidence[1].present, finding.evidence[1].address) == (False, NOBODYS)
    assert (finding.severity, finding.technique) == ("high", "T1014")
    assert len(found) == 1


@pytest.mark.parametrize("hook", EVERY)
def test_a_function_of_a_listed_module_is_no_alarm(kernel: Tampered, hook: Hook) -> None:
    function = kernel.symbols["veth_open"]
    with hooked(kernel, hook, function) as (table, place):
        assert kernel.look(KernelHooks()) == []
        row = kernel.linux.hooks().find(place=place)
    assert row is not None
    assert (row.table, row.target, row.owner) == (table, function, "veth")


def test_a_function_of_a_hidden_module_is_nobodys(kernel: Tampered) -> None:
    entry = kernel.symbols["veth:__this_module"] + kernel.offset("module", "list")
    function = kernel.symbols["veth_open"]
    with kernel.unlinked(entry), hooked(kernel, packets, function) as (_, place):
        found = kernel.look(KernelHooks())
    assert place in {one.evidence[0].address for one in found}


def test_a_constant_that_leads_out_of_the_kernel_is_told_at_first_sight(kernel: Tampered) -> None:
    place = kernel.symbols["tcp4_seq_ops"] + kernel.offset("seq_operations", "show")
    with kernel.pointing((place, kernel.symbols["veth_open"])):
        [finding] = kernel.look(KernelHooks())
    assert kernel.look(KernelHooks()) == []
    assert finding.evidence[0].address == place
    assert "constants[tcp4_seq_ops+0x18] leads to" in finding.claim
    assert finding.evidence[1].facts["owner"] == "veth"


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
