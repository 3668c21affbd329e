"""Paths through dentries and mounts written by hand."""

import pytest

from qvmi.errors import MemoryFault, SymbolNotFound
from qvmi.semantics.linux.fs.d_path import FilePath, Paths, Place
from qvmi.semantics.linux.structures.effort import Effort, Spent
from qvmi.semantics.linux.structures.list import Implausible
from tests.synthetic.kernel_files import KernelFiles

LONG = b"n" * 200


def path_of(
    memory: KernelFiles, dentry: int, *, mount: int = 0, effort: Effort | None = None
) -> FilePath:
    paths = Paths(memory.space, memory.symbols)
    place = Place(memory.vfsmount(mount or memory.root_mount), dentry)
    return paths.of(place, effort or Effort())


def test_names_are_joined_from_the_root() -> None:
    memory = KernelFiles()
    run = memory.dentry(b"run", memory.root)
    assert path_of(memory, memory.dentry(b"log", run)) == FilePath("/run/log", deleted=False)
    assert path_of(memory, memory.root).text == "/"


def test_a_mount_is_crossed_to_where_it_is_mounted_and_one_above_another_too() -> None:
    memory = KernelFiles()
    place = memory.dentry(b"mnt", memory.root)
    inner = memory.dentry(b"/")
    below = memory.mount(inner, on=(memory.root_mount, place))
    above = memory.mount(memory.dentry(b"/"), on=(below, inner))
    root = memory.get(memory.vfsmount(above))
    assert path_of(memory, memory.dentry(b"x", root), mount=above).text == "/mnt/x"


def test_what_is_deleted_is_told() -> None:
    memory = KernelFiles()
    gone = memory.dentry(b"gone", memory.root, deleted=True)
    assert path_of(memory, gone) == FilePath("/gone", deleted=True)


def test_a_long_name_lies_elsewhere() -> None:
    memory = KernelFiles()
    assert path_of(memory, memory.dentry(LONG, memory.root)).text == "/" + LONG.decode()


def test_bytes_that_are_no_text_are_written_as_codes() -> None:
    memory = KernelFiles()
    assert path_of(memory, memory.dentry(b"\xff\x1b[m", memory.root)).text == "/\\xff\x1b[m"


@pytest.mark.parametrize(
    ("namer", "name", "shown"),
    [
        ("pipefs_dname", b"", FilePath("pipe:[4711]", deleted=False)),
        ("sockfs_dname", b"", FilePath("socket:[4711]", deleted=False)),
        ("anon_inodefs_dname", b"[eventfd]", FilePath("anon_inode:[eventfd]", deleted=False)),
        ("simple_dname", b"memfd:x", FilePath("/memfd:x", deleted=True)),
    ],
)
def test_what_has_no_path_is_named_by_the_function_of_its_file_system(
    namer: str, name: bytes, shown: FilePath
) -> None:
    memory = KernelFiles()
    odd = memory.dentry(name, namer=namer, inode=memory.inode(number=4711))
    assert path_of(memory, odd) == shown


def test_a_namespace_is_named_by_its_kind() -> None:
    memory = KernelFiles()
    inode = memory.inode(number=4026531840)
    namespace, operations = memory.allocate("ns_common"), memory.allocate("proc_ns_operations")
    memory.u64(operations, memory.text(b"net"))
    memory.u64(namespace + 0x10, operations)
    memory.u64(inode + 0x80, namespace)
    odd = memory.dentry(b"", namer="ns_dname", inode=inode)
    assert path_of(memory, odd).text == "net:[4026531840]"


def test_paths_from_another_root_end_there_or_lead_nowhere() -> None:
    memory = KernelFiles()
    run, srv = memory.dentry(b"run", memory.root), memory.dentry(b"srv", memory.root)
    mount = memory.vfsmount(memory.root_mount)
    paths = Paths(memory.space, memory.symbols)
    root = Place(mount, run)
    assert paths.from_root(Place(mount, memory.dentry(b"x", run)), root, Effort()) == "/x"
    assert paths.from_root(root, root, Effort()) == "/"
    assert paths.from_root(Place(mount, srv), root, Effort()) is None
    assert paths.from_root(Place(mount, srv), None, Effort()) == "/srv"


# ------------------------------------------------------------------------------ what cannot be


def test_a_loop_of_parents_ends() -> None:
    memory = KernelFiles()
    one = memory.dentry(b"one", memory.root)
    two = memory.dentry(b"two", one)
    memory.u64(memory.at(one, "dentry", "d_parent"), two)
    with pytest.raises(Implausible, match="4096 steps"):
        path_of(memory, two)


def test_a_loop_of_mounts_ends() -> None:
    memory = KernelFiles()
    inner = memory.dentry(b"/")
    mount = memory.mount(inner, on=(memory.root_mount, memory.root))
    memory.u64(memory.at(memory.root_mount, "mount", "mnt_parent"), mount)
    memory.u64(memory.at(memory.root_mount, "mount", "mnt_mountpoint"), inner)
    with pytest.raises(Implausible, match="4096 steps"):
        path_of(memory, memory.dentry(b"x", inner), mount=mount)


@pytest.mark.parametrize("length", [256, 0xFFFF_FFFF])
def test_a_name_that_no_file_can_have_is_refused(length: int) -> None:
    memory = KernelFiles()
    bad = memory.dentry(b"bad", memory.root)
    memory.u32(memory.at(bad, "dentry", "d_name") + 4, length)
    with pytest.raises(Implausible, match="name of"):
        path_of(memory, bad)


@pytest.mark.parametrize("place", [0, 0x4141_4141_4141_4141, (1 << 64) - 1])
def test_a_dentry_that_is_nowhere_is_a_fault(place: int) -> None:
    with pytest.raises(MemoryFault):
        path_of(KernelFiles(), place)


def test_paths_without_end_are_given_up() -> None:
    memory = KernelFiles()
    effort = Effort(3)
    deep = memory.root
    for _ in range(5):
        deep = memory.dentry(b"d", deep)
    with pytest.raises(Spent):
        path_of(memory, deep, effort=effort)


def test_a_rename_meanwhile_is_read_again_and_counted() -> None:
    memory = KernelFiles(mapped=False)
    lock = memory.symbols.addresses["rename_lock"]
    file = memory.dentry(b"old", memory.root)
    name = memory.at(file, "dentry", "d_iname")

    def rename(pa: int) -> None:
        if pa == memory.root_mount + memory.to_pa:
            memory.ram.before_read = None
            memory.write(name, b"new")
            memory.u32(lock, 2)

    memory.ram.before_read = rename
    effort = Effort()
    assert path_of(memory, file, effort=effort).text == "/new"
    assert effort.retries == 1


def test_names_that_change_all_the_time_are_said_so() -> None:
    memory = KernelFiles(mapped=False)
    lock = memory.symbols.addresses["rename_lock"]
    counts = iter(range(0, 1000, 2))

    def rename(_: int) -> None:
        memory.u32(lock, next(counts))

    memory.ram.before_read = rename
    with pytest.raises(Implausible, match="faster"):
        path_of(memory, memory.dentry(b"x", memory.root))


def test_a_missing_symbol_is_named() -> None:
    memory = KernelFiles()
    del memory.symbols.addresses["rename_lock"]
    with pytest.raises(SymbolNotFound, match="rename_lock"):
        Paths(memory.space, memory.symbols)
