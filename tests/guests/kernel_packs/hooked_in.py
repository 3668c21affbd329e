"""Functions that are hooked into the kernel from outside, as a rootkit would have hooked them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from tests.guests.kernel_packs.tampered_kernel import Tampered

__all__ = ["HOOKS", "WORD", "Hook", "hooked", "packets"]

_LOCAL_IN: Final = 1
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
    place += kernel.offset("netns_nf", "hooks_ipv4") + _LOCAL_IN * WORD
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


HOOKS: Final = (notifier, packets, tracepoint, tracer, probe, security)


@contextmanager
def hooked(kernel: Tampered, hook: Hook, function: int) -> Iterator[tuple[str, int]]:
    """This hooks a function in for the length of the block, and gives the table and the place."""
    table, place, writes = hook(kernel, function)
    with kernel.pointing(*writes):
        yield table, place
