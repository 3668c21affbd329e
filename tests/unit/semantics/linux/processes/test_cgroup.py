"""Cgroups of kernels, and at moments, that no guest of the lab has."""

from qvmi.semantics.guest_os import Cgroup
from qvmi.semantics.linux.processes.cgroup import CgroupTable
from qvmi.semantics.linux.structures.list import ListWalk
from qvmi.semantics.linux.tasks.task import Tasks
from tests.synthetic.kernel_confinement import KernelConfinement

EXITING = 4


def walk(memory: KernelConfinement) -> ListWalk[Cgroup]:
    tasks = Tasks(memory.space, memory.symbols, ram_size=1 << 20)
    processes = tasks.processes().rows.values()
    return CgroupTable(memory.space, memory.symbols, tasks=tasks).of(processes)


def lines(memory: KernelConfinement) -> list[tuple[int, str, str]]:
    found = walk(memory)
    assert found.gaps == []
    return [(row.hierarchy, row.controllers, row.path) for row in found.rows.values()]


def in_one(memory: KernelConfinement, root: int, path: str) -> int:
    task = memory.add_process(7)
    memory.set_u64(task, "cgroups", memory.css_set(memory.cgroup(root, path)))
    return task


def test_a_hierarchy_is_called_by_its_controllers_and_its_name() -> None:
    memory = KernelConfinement()
    memory.controller(1, b"cpu")
    memory.controller(5, b"cpuacct")
    both = memory.hierarchy(3, mask=0b100010, name=b"mine")
    unified, named = memory.hierarchy(0, mask=0b10), memory.hierarchy(4, name=b"systemd")
    groups = [memory.cgroup(root, path) for root, path in ((named, "/n"), (both, "/b/c"))]
    task = memory.add_process(7)
    memory.set_u64(task, "cgroups", memory.css_set(*groups, memory.cgroup(unified, "/")))
    assert lines(memory) == [
        (0, "", "/"),
        (3, "cpu,cpuacct,name=mine", "/b/c"),
        (4, "name=systemd", "/n"),
    ]


def test_cgroup_2_is_not_told_before_it_is_mounted() -> None:
    memory = KernelConfinement()
    in_one(memory, memory.hierarchy(0), "/")
    seen = memory.allocate_bytes(1)
    memory.symbols.addresses["cgrp_dfl_visible"] = seen
    assert lines(memory) == []
    memory.write(seen, b"\1")
    assert lines(memory) == [(0, "", "/")]


def test_what_is_dead_is_in_the_root_of_an_old_hierarchy_alone() -> None:
    memory = KernelConfinement()
    old, unified = memory.hierarchy(1, name=b"old"), memory.hierarchy(0)
    task = memory.add_process(7, flags=EXITING)
    groups = memory.cgroup(old, "/docker/x", flags=0), memory.cgroup(unified, "/gone", flags=0)
    memory.set_u64(task, "cgroups", memory.css_set(*groups))
    rows = walk(memory).rows.values()
    assert [(row.path, row.deleted) for row in rows] == [("/gone", True), ("/", False)]


def test_a_path_longer_than_the_kernel_shows_is_a_gap() -> None:
    memory = KernelConfinement()
    in_one(memory, memory.hierarchy(0), "/" + "/".join(["x" * 200] * 30))
    found = walk(memory)
    assert (len(found.rows), len(found.gaps)) == (0, 1)
    assert "more than 4096 bytes" in found.gaps[0].reason


def test_who_moves_meanwhile_is_looked_at_again() -> None:
    memory = KernelConfinement(mapped=False)
    root = memory.hierarchy(0)
    task = in_one(memory, root, "/old")
    css_set = memory.get(task + memory.member("task_struct", "cgroups"))
    there = memory.css_set(memory.cgroup(root, "/new"))

    def move(pa: int) -> None:
        if pa == css_set + memory.member("css_set", "cgrp_links") + memory.to_pa:
            memory.ram.before_read = None
            memory.set_u64(task, "cgroups", there)

    memory.ram.before_read = move
    found = walk(memory)
    assert [row.path for row in found.rows.values()] == ["/new"]
    assert (found.gaps, found.retries) == ([], 1)
