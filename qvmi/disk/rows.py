"""Rows about virtual disks: their volumes, and what is in a file system."""

import msgspec

__all__ = ["DiskEntry", "Volume"]


class Volume(msgspec.Struct, frozen=True, gc=False):
    """This is a part of a disk that may have a file system.

    Args:
        number: of the partition; 0 for a disk without partitions.
        start: of its first byte on the disk.
        size: in bytes.
        scheme: of the partition table: ``mbr``, ``gpt``, or empty without one.
        filesystem: ``ext2``, ``ext3`` or ``ext4``; empty where there is none that is read.
        uuid: of the file system.
        label: of the file system; the guest's word.
        journal_pending: whether changes wait in its journal, as they do while it is mounted: they are not
            in what is read. None where there is no file system that is read.
    """

    number: int
    start: int
    size: int
    scheme: str
    filesystem: str = ""
    uuid: str = ""
    label: str = ""
    journal_pending: bool | None = None


class DiskEntry(msgspec.Struct, frozen=True, gc=False):
    """This is a file, folder or whatever else a file system has, as it is on the disk.

    Args:
        path: from the root of its file system; the guest's word.
        kind: ``file``, ``folder``, ``symlink``, ``character device``, ``block device``, ``fifo``, ``socket``.
        mode: permission bits.
        uid: of its owner.
        gid: of its group.
        size: in bytes.
        links: how many names it has.
        inode: its number.
        generation: tells it from another one that had the number before.
        modified_ns: when its content was written last, in nanoseconds since the Unix epoch.
        changed_ns: when it was changed last, likewise.
        created_ns: when it was made, likewise; None where the file system does not keep that.
        target: where a symlink leads; empty for others.
    """

    path: str
    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    links: int
    inode: int
    generation: int
    modified_ns: int
    changed_ns: int
    created_ns: int | None = None
    target: str = ""
