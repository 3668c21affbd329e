"""Rows about the memory of processes: how it is mapped, and what is in it."""

import msgspec

from qvmi.addr import Va

__all__ = ["MemoryMapping", "MemoryRun"]


class MemoryMapping(msgspec.Struct, frozen=True, gc=False):
    """This is one run of a process's memory that is of one kind.

    Args:
        pid: of the process.
        start: its first address.
        end: the first address behind it.
        permissions: as ``/proc/PID/maps`` shows them, such as ``r-xp``.
        offset: in the file, in bytes; 0 without one.
        device: of the file system of the file, as ``MAJOR:MINOR``; empty without one.
        inode: of the file; 0 without one.
        name: of the file, or such as ``[heap]``, or empty. It is the guest's word.
        deleted: whether no path leads to the file any more, or never did.
        address: of the ``vm_area_struct``.
    """

    pid: int
    start: Va
    end: Va
    permissions: str
    offset: int
    device: str
    inode: int
    name: str
    deleted: bool
    address: Va


class MemoryRun(msgspec.Struct, frozen=True, gc=False):
    """This is a run of a process's memory, and what is in it.

    Args:
        start: its first address.
        end: the first address behind it.
        data: the bytes; empty where none are in memory.
    """

    start: Va
    end: Va
    data: bytes
