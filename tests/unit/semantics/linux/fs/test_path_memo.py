"""Files that one question meets again and again, in a guest that changes between two meetings."""

from itertools import islice

import pytest

from qvmi.semantics.linux.fs.d_path import FilePath, Paths
from qvmi.semantics.linux.fs.path_memo import KnownPaths
from qvmi.semantics.linux.structures.effort import Effort, Spent
from tests.synthetic.kernel_files import KernelFiles

LONG = b"n" * 200


def known(memory: KernelFiles, effort: Effort | None = None) -> KnownPaths:
    return KnownPaths(Paths(memory.space, memory.symbols), effort or Effort())


def mount_of(memory: KernelFiles) -> int:
    return memory.vfsmount(memory.root_mount)


def rename(memory: KernelFiles, dentry: int, name: bytes) -> None:
    memory.write(memory.at(dentry, "dentry", "d_iname"), name)
    memory.u32(memory.at(dentry, "dentry", "d_name") + 4, len(name))


def count_up(memory: KernelFiles, lock: str) -> None:
    memory.u32(memory.symbols.addresses[lock], 2)


def test_a_file_that_is_met_again_is_read_less_and_named_alike() -> None:
    memory = KernelFiles(mapped=False)
    folder = memory.dentry(b"lib", memory.dentry(b"usr", memory.root))
    file, paths, reads = memory.dentry(b"libc.so", folder), known(memory), [0, 0]
    for meeting in range(2):

        def note(_: int, meeting: int = meeting) -> None:
            reads[meeting] += 1

        memory.ram.before_read = note
        assert paths.of(mount_of(memory), file) == FilePath("/usr/lib/libc.so", deleted=False)
    assert 0 < reads[1] < reads[0] / 2


@pytest.mark.parametrize("lock", ["rename_lock", "mount_lock"])
def test_what_was_renamed_or_mounted_elsewhere_is_named_anew(lock: str) -> None:
    memory = KernelFiles()
    old, new = (memory.dentry(name, memory.root) for name in (b"old", b"new"))
    place = memory.dentry(b"mnt", old)
    inner = memory.dentry(b"/")
    mount = memory.mount(inner, on=(memory.root_mount, place))
    file, paths = memory.dentry(b"f", inner), known(memory)
    assert paths.of(memory.vfsmount(mount), file).text == "/old/mnt/f"
    # Above the file's own mount nothing is looked at again but the counts.
    moved = place if lock == "rename_lock" else memory.dentry(b"mnt", new)
    memory.u64(memory.at(moved, "dentry", "d_parent"), new)
    memory.u64(memory.at(mount, "mount", "mnt_mountpoint"), moved)
    count_up(memory, lock)
    assert paths.of(memory.vfsmount(mount), file).text == "/new/mnt/f"


def test_what_is_deleted_between_two_meetings_is_told() -> None:
    memory = KernelFiles()
    file, paths = memory.dentry(b"f", memory.root), known(memory)
    assert not paths.of(mount_of(memory), file).deleted
    memory.u64(memory.at(file, "dentry", "d_hash") + 8, 0)
    assert paths.of(mount_of(memory), file).deleted


def test_a_folder_that_was_freed_and_used_for_another_one_is_seen() -> None:
    memory = KernelFiles()
    folder = memory.dentry(b"old", memory.root)
    file, paths = memory.dentry(b"f", memory.dentry(b"sub", folder)), known(memory)
    assert paths.of(mount_of(memory), file).text == "/old/sub/f"
    rename(memory, folder, b"another")  # and no lock was taken for it
    assert paths.of(mount_of(memory), file).text == "/another/sub/f"


def test_a_long_name_that_was_written_over_is_seen() -> None:
    memory = KernelFiles()
    file, paths = memory.dentry(LONG, memory.root), known(memory)
    assert paths.of(mount_of(memory), file).text == "/" + LONG.decode()
    memory.write(memory.get(memory.at(file, "dentry", "d_name") + 8), b"m")
    assert paths.of(mount_of(memory), file).text == "/m" + LONG.decode()[1:]


def test_a_pipe_that_was_freed_and_used_for_another_one_is_seen() -> None:
    memory = KernelFiles()
    inode = memory.inode(0o010600, 1)
    pipe, paths = memory.dentry(b"", namer="pipefs_dname", inode=inode), known(memory)
    assert paths.of(mount_of(memory), pipe).text == "pipe:[1]"
    memory.u64(memory.at(inode, "inode", "i_ino"), 2)
    assert paths.of(mount_of(memory), pipe).text == "pipe:[2]"


def test_what_changes_while_it_is_learned_is_not_kept() -> None:
    memory = KernelFiles(mapped=False)
    file, paths = memory.dentry(b"old", memory.root), known(memory)

    def move(pa: int) -> None:
        if pa == memory.root_mount + memory.to_pa:
            memory.ram.before_read = None
            rename(memory, file, b"new")
            count_up(memory, "rename_lock")

    memory.ram.before_read = move
    assert paths.of(mount_of(memory), file).text == "/new"
    assert paths.of(mount_of(memory), file).text == "/new"


def test_meeting_a_file_again_costs_effort_too() -> None:
    memory = KernelFiles()
    file, paths = memory.dentry(b"f", memory.root), known(memory, Effort(50))
    met = iter(lambda: paths.of(mount_of(memory), file), None)
    with pytest.raises(Spent):
        list(islice(met, 100))
