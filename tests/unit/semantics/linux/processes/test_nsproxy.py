"""Namespaces of kernels, and at moments, that no guest of the lab has."""

import pytest

from qvmi.errors import LayoutNotFound
from qvmi.semantics.guest_os import Namespaces
from qvmi.semantics.linux.processes.nsproxy import NamespaceTable
from qvmi.semantics.linux.structures.list import ListWalk
from qvmi.semantics.linux.tasks.task import Tasks
from tests.synthetic.kernel_confinement import KernelConfinement, without

UTS, MNT, TIME, PID, INNER_PID, USER = 11, 12, 13, 14, 15, 70


def populated(memory: KernelConfinement) -> int:
    """This makes one process, in a pid namespace within another, and gives its ``nsproxy``."""
    task = memory.add_process(7)
    memory.trust(task, memory.credentials(0))
    outer, inner = (memory.numbered("pid_namespace", number) for number in (PID, INNER_PID))
    memory.number_in(task, (7, outer), (1, inner))
    proxy = memory.allocate("nsproxy")
    memory.set_u64(task, "nsproxy", proxy)
    for name, kind, number in (
        ("uts_ns", "uts_namespace", UTS),
        ("mnt_ns", "mnt_namespace", MNT),
        ("time_ns", "time_namespace", TIME),
    ):
        if name in memory.layouts["nsproxy"][1]:
            memory.put(proxy, "nsproxy", name, memory.numbered(kind, number))
    return proxy


def hostname_at(memory: KernelConfinement, proxy: int) -> int:
    uts = memory.get(proxy + memory.member("nsproxy", "uts_ns"))
    return uts + memory.member("uts_namespace", "name") + memory.member("new_utsname", "nodename")


def walk(memory: KernelConfinement) -> ListWalk[Namespaces]:
    tasks = Tasks(memory.space, memory.symbols, ram_size=1 << 20)
    processes = tasks.processes().rows.values()
    return NamespaceTable(memory.space, memory.symbols, tasks=tasks).of(processes)


def row(memory: KernelConfinement) -> Namespaces:
    (found,) = walk(memory).rows.values()
    return found


def test_the_innermost_pid_namespace_counts() -> None:
    memory = KernelConfinement()
    populated(memory)
    found = row(memory)
    assert (found.pid, found.inner_pid, found.pid_ns, found.user) == (7, 1, INNER_PID, USER)
    assert (found.uts, found.mnt, found.time, found.net) == (UTS, MNT, TIME, None)


def test_a_kernel_before_time_namespaces_tells_none() -> None:
    memory = KernelConfinement(layouts=without("nsproxy", "time_ns"))
    populated(memory)
    assert (row(memory).uts, row(memory).time) == (UTS, None)


def test_a_kernel_whose_types_lack_all_kinds_is_refused() -> None:
    kinds = ("uts_ns", "ipc_ns", "mnt_ns", "net_ns", "time_ns", "cgroup_ns")
    memory = KernelConfinement(layouts=without("nsproxy", *kinds))
    with pytest.raises(LayoutNotFound):
        walk(memory)


def test_a_hostname_that_changes_meanwhile_is_read_again() -> None:
    memory = KernelConfinement(mapped=False)
    at = hostname_at(memory, populated(memory))
    memory.write(at, b"half of the old\0")
    reads: list[int] = []

    def change(pa: int) -> None:
        reads.append(pa)
        if reads.count(at + memory.to_pa) == 2:
            memory.ram.before_read = None
            memory.write(at, b"the new one\0")

    memory.ram.before_read = change
    found = walk(memory)
    assert [one.hostname for one in found.rows.values()] == ["the new one"]
    assert (found.gaps, found.retries) == ([], 1)


def test_a_hostname_without_an_end_is_a_gap() -> None:
    memory = KernelConfinement()
    memory.write(hostname_at(memory, populated(memory)), b"x" * 65)
    found = walk(memory)
    assert (len(found.rows), len(found.gaps)) == (0, 1)
    assert "without an end" in found.gaps[0].reason
