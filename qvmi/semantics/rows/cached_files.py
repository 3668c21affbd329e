"""Rows about files of which the kernel holds pages in memory."""

import msgspec

from qvmi.addr import Va

__all__ = ["CachedFile", "FilePiece", "MissingRange"]


class CachedFile(msgspec.Struct, frozen=True, gc=False):
    """This is one file of which pages are in memory.

    Args:
        path: through the mounts, from the root of the mount namespace; of a file system that nobody
            sees, as that of memory files, from its own root; empty where no name is known. It is the
            guest's word.
        filesystem: its type, such as ``ext4``; ``bdev`` holds the pages of block devices.
        device: of the file system, or the block device itself, as ``MAJOR:MINOR``.
        inode: its number there.
        size: of the file in bytes.
        cached: how many pages of it are in memory.
        dirty: how many of these are to be written back; 0 where the file is in memory alone.
        deleted: whether no path leads there any more, or never did.
        changed: when its content, its name or its permissions were changed last, in seconds since the
            Unix epoch by the guest's clock.
        address: of the ``struct inode``.
    """

    path: str
    filesystem: str
    device: str
    inode: int
    size: int
    cached: int
    dirty: int
    deleted: bool
    changed: int
    address: Va


class FilePiece(msgspec.Struct, frozen=True, gc=False):
    """This is a run of a file's bytes that is in memory.

    Args:
        start: where it begins in the file.
        data: the bytes.
    """

    start: int
    data: bytes


class MissingRange(msgspec.Struct, frozen=True, gc=False):
    """This is a part of a file that is not in memory.

    Args:
        start: its first byte.
        end: the first byte behind it.
        reason: why it is not there.
    """

    start: int
    end: int
    reason: str
