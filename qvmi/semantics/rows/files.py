"""Rows about mounted file systems and open files."""

import msgspec

from qvmi.addr import Va

__all__ = ["Mount", "OpenFile"]


class Mount(msgspec.Struct, frozen=True, gc=False):
    """This is one mounted file system, as one mount namespace sees it.

    Args:
        id: as ``/proc/PID/mountinfo`` shows it.
        parent_id: of the mount it is mounted on; its own for the first one.
        namespace: of the mount namespace, the number that ``/proc/PID/ns/mnt`` shows.
        device: of the file system, as ``MAJOR:MINOR``.
        root: what of the file system is mounted, as a path within it.
        path: where it is mounted, from the root that was asked for.
        options: of this mount, such as ``rw,nosuid,relatime``.
        propagation: such as ``shared:7 master:3``; empty for a private one.
        filesystem: its type, such as ``ext4``.
        source: what is mounted. ``path``, ``root`` and this are the guest's words.
        superblock_options: those of the file system that all of them have, such as ``rw,sync``.
        address: of the ``struct mount``.
    """

    id: int
    parent_id: int
    namespace: int
    device: str
    root: str
    path: str
    options: str
    propagation: str
    filesystem: str
    source: str
    superblock_options: str
    address: Va


class OpenFile(msgspec.Struct, frozen=True, gc=False):
    """This is one descriptor of a process, and what it refers to.

    Args:
        pid: of the process.
        fd: the descriptor's number.
        path: as ``/proc/PID/fd`` shows it, without `` (deleted)``: from the root of the mount
            namespace that the file was opened in, or such as ``socket:[4711]``. It is the guest's
            word: escape it for whatever it is printed on.
        kind: ``file``, ``directory``, ``link``, ``pipe``, ``socket``, ``character device``,
            ``block device`` or ``anonymous``.
        access: ``r``, ``w`` or ``rw``; empty where it is open for neither.
        position: where the next byte is read or written.
        device: of the file system it is in, as ``MAJOR:MINOR``.
        inode: its number there.
        deleted: whether no path leads there any more, or never did.
        address: of the ``struct file``, which several descriptors may share.
    """

    pid: int
    fd: int
    path: str
    kind: str
    access: str
    position: int
    device: str
    inode: int
    deleted: bool
    address: Va
