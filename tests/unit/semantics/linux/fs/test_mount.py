"""Mounts and their namespaces written by hand."""

from collections.abc import Callable

import pytest

from qvmi.addr import Va
from qvmi.errors import WalkFailed
from qvmi.semantics.guest_os import Mount
from qvmi.semantics.linux.fs.d_path import Paths
from qvmi.semantics.linux.fs.mount import Mounts
from qvmi.semantics.linux.structures.list import ListWalk
from qvmi.semantics.linux.tasks.task import Tasks
from tests.synthetic.kernel_files import LIST_LAYOUTS, TREE_LAYOUTS, KernelFiles
from tests.synthetic.symbols import Layouts

NOWHERE = 0x4141_4141_4141_4141
BOTH = pytest.mark.parametrize("layouts", [TREE_LAYOUTS, LIST_LAYOUTS], ids=["tree", "list"])


def walk(memory: KernelFiles, *, of: int | None = None) -> ListWalk[Mount]:
    tasks = Tasks(memory.space, memory.symbols, ram_size=1 << 20)
    paths = Paths(memory.space, memory.symbols)
    mounts = Mounts(memory.space, memory.symbols, tasks=tasks, paths=paths)
    processes = list(tasks.processes().rows.values())
    if of is None:
        return mounts.of_all(processes)
    return mounts.of(next(row for row in processes if row.pid == of))


def paths(found: ListWalk[Mount]) -> list[str]:
    return [row.path for row in found.rows.values()]


def with_mounts(layouts: Layouts, names: list[bytes]) -> tuple[KernelFiles, list[int]]:
    """This is a process in a namespace with a root and folders that something is mounted on."""
    memory = KernelFiles(layouts)
    mounts = [memory.root_mount]
    for number, name in enumerate(names, 2):
        place = memory.dentry(name, memory.root)
        on = (memory.root_mount, place)
        mounts.append(memory.mount(memory.dentry(b"/"), on=on, number=number))
    memory.enter(memory.add_process(7), memory.namespace(mounts))
    return memory, mounts


@BOTH
def test_a_mount_has_all_its_fields(layouts: Layouts) -> None:
    memory = KernelFiles(layouts)
    place = memory.dentry(b"mnt", memory.root)
    inside = memory.dentry(b"sub", memory.root)
    mount = memory.mount(inside, on=(memory.root_mount, place), number=9, flags=0x61, source=b"a b")
    memory.u64(memory.at(memory.super_block, "super_block", "s_flags"), 17)
    memory.u64(memory.at(memory.super_block, "super_block", "s_subtype"), memory.text(b"sub"))
    memory.enter(memory.add_process(7), memory.namespace([memory.root_mount, mount], number=42))
    row = list(walk(memory).rows.values())[1]
    assert row == Mount(
        id=9,
        parent_id=1,
        namespace=42,
        device="8:1",
        root="/sub",
        path="/mnt",
        options="ro,nosuid,relatime",
        propagation="",
        filesystem="ext4.sub",
        source="a b",
        superblock_options="ro,sync",
        address=Va(mount),
    )


@BOTH
def test_all_are_listed_in_the_kernels_order(layouts: Layouts) -> None:
    memory, _ = with_mounts(layouts, [b"a", b"b", b"c", b"d"])
    assert paths(walk(memory)) == ["/", "/a", "/b", "/c", "/d"]


@BOTH
def test_a_namespace_of_several_processes_is_listed_once(layouts: Layouts) -> None:
    memory, mounts = with_mounts(layouts, [b"a"])
    shared = memory.get(memory.get(memory.at(_first(memory), "task_struct", "nsproxy")) + 0x18)
    memory.enter(memory.add_process(8), shared)
    assert len(walk(memory).rows) == len(mounts)


def test_a_process_sees_what_its_root_leads_to() -> None:
    memory, mounts = with_mounts(TREE_LAYOUTS, [b"a", b"b"])
    namespace = memory.get(memory.get(memory.at(_first(memory), "task_struct", "nsproxy")) + 0x18)
    below = memory.get(memory.vfsmount(mounts[1]))
    memory.enter(memory.add_process(8), namespace, root=(mounts[1], below))
    assert paths(walk(memory, of=8)) == ["/"]
    assert paths(walk(memory, of=7)) == ["/", "/a", "/b"]


@pytest.mark.parametrize(
    ("flags", "master", "shown"),
    [
        (0, False, ""),
        (0x1000, False, "shared:5"),
        (0, True, "master:6"),
        (0x1000, True, "shared:5 master:6"),
        (0x2000, False, "unbindable"),
    ],
)
def test_propagation_is_written_as_mountinfo_does(flags: int, shown: str, *, master: bool) -> None:
    memory = KernelFiles()
    mount = memory.mount(memory.dentry(b"/"), flags=flags)
    memory.u32(memory.at(mount, "mount", "mnt_group_id"), 5)
    if master:
        other = memory.mount(memory.dentry(b"/"))
        memory.u32(memory.at(other, "mount", "mnt_group_id"), 6)
        memory.u64(memory.at(mount, "mount", "mnt_master"), other)
    memory.enter(memory.add_process(7), memory.namespace([mount]))
    assert [row.propagation for row in walk(memory).rows.values()] == [shown]


def test_a_bookmark_in_the_list_is_no_mount() -> None:
    memory = KernelFiles(LIST_LAYOUTS)
    cursor = memory.mount(memory.dentry(b"/"), flags=0x1000_0000)
    memory.enter(memory.add_process(7), memory.namespace([memory.root_mount, cursor]))
    assert paths(walk(memory)) == ["/"]


def test_a_mount_of_nothing_is_called_so() -> None:
    memory = KernelFiles()
    mount = memory.mount(memory.dentry(b"/"), source=None)
    memory.enter(memory.add_process(7), memory.namespace([mount]))
    assert [row.source for row in walk(memory).rows.values()] == ["none"]


# ------------------------------------------------------------------------------ what cannot be


DAMAGES: dict[str, Callable[[KernelFiles, int], int]] = {
    "parent": lambda memory, mount: memory.at(mount, "mount", "mnt_parent"),
    "mountpoint": lambda memory, mount: memory.at(mount, "mount", "mnt_mountpoint"),
    "root": lambda memory, mount: memory.vfsmount(mount),
    "file-system": lambda memory, mount: memory.vfsmount(mount) + 8,
    "source": lambda memory, mount: memory.at(mount, "mount", "mnt_devname"),
    "master": lambda memory, mount: memory.at(mount, "mount", "mnt_master"),
}


@BOTH
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_mount_that_leads_nowhere_is_a_gap_and_hides_no_other(
    layouts: Layouts, damage: Callable[[KernelFiles, int], int]
) -> None:
    memory, mounts = with_mounts(layouts, [b"a", b"b", b"c"])
    memory.u64(damage(memory, mounts[2]), NOWHERE)
    found = walk(memory)
    assert paths(found) == ["/", "/a", "/c"]
    assert mounts[2] in {gap.address for gap in found.gaps}


def test_a_root_that_was_unmounted_lazily_shows_nothing_and_that_is_no_gap() -> None:
    memory = KernelFiles()
    root = memory.dentry(b"/")
    memory.u64(memory.at(root, "dentry", "d_sb"), memory.super_block)
    namespace = memory.namespace([memory.root_mount])
    memory.enter(memory.add_process(7), namespace, root=(memory.mount(root), root))
    found = walk(memory, of=7)
    assert (paths(found), found.gaps) == ([], [])
    memory.u64(memory.at(root, "dentry", "d_sb"), memory.super_block + 8)
    assert [gap.structure for gap in walk(memory, of=7).gaps] == ["fs_struct.root"]


def test_a_tree_that_is_a_loop_ends_with_a_gap() -> None:
    memory, mounts = with_mounts(TREE_LAYOUTS, [b"a", b"b", b"c", b"d"])
    node = memory.at(mounts[4], "mount", "mnt_node")
    memory.u64(node + 8, memory.at(mounts[2], "mount", "mnt_node"))
    found = walk(memory)
    assert sorted(paths(found)) == ["/", "/a", "/b", "/c", "/d"]
    assert "already seen" in found.gaps[0].reason


def test_a_namespace_that_is_nowhere_is_a_gap_and_hides_no_other() -> None:
    memory, _ = with_mounts(TREE_LAYOUTS, [b"a"])
    memory.enter(memory.add_process(8), NOWHERE)
    found = walk(memory)
    assert paths(found) == ["/", "/a"]
    assert [gap.address for gap in found.gaps] == [NOWHERE]


def test_a_process_in_no_namespace_has_no_mounts() -> None:
    memory, _ = with_mounts(TREE_LAYOUTS, [b"a"])
    memory.add_process(8)
    assert len(walk(memory).rows) == 2
    with pytest.raises(WalkFailed, match="in none any more"):
        walk(memory, of=8)


def test_a_mount_while_they_are_listed_is_seen_and_counted() -> None:
    memory = KernelFiles(mapped=False)
    namespace = memory.namespace([memory.root_mount])
    memory.enter(memory.add_process(7), namespace)
    place = memory.dentry(b"new", memory.root)
    new = memory.mount(memory.dentry(b"/"), on=(memory.root_mount, place), number=2)
    nodes = [memory.at(one, "mount", "mnt_node") for one in (memory.root_mount, new)]

    def mount(pa: int) -> None:
        if pa == memory.root_mount + memory.to_pa:
            memory.ram.before_read = None
            memory.u64(memory.at(namespace, "mnt_namespace", "mounts"), memory.balanced(nodes))
            memory.u32(memory.symbols.addresses["mount_lock"], 2)

    memory.ram.before_read = mount
    found = walk(memory)
    assert paths(found) == ["/", "/new"]
    assert found.retries > 0


def _first(memory: KernelFiles) -> int:
    """This is the address of the first process."""
    return memory.get(memory.tasks_head) - memory.member("task_struct", "tasks")
