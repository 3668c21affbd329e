"""Rows about what processes run."""

import msgspec

from qvmi.addr import Va

__all__ = ["Program"]


class Program(msgspec.Struct, frozen=True, gc=False):
    """This is what a process runs, who made it, and who traces it.

    Args:
        pid: of the process.
        name: ``task_struct.comm``.
        kernel_thread: whether ``PF_KTHREAD`` is set.
        memory: of its ``mm_struct``, None without one: kernel threads and zombies have none.
        path: of its executable, as ``/proc/PID/exe`` shows it; empty without one. It is the guest's word.
        deleted: whether no path leads to that file any more, or never did, as of a memory file.
        device: of the file system that it is in, as ``MAJOR:MINOR``; empty without one.
        inode: its number there; 0 without one.
        mode: of the file, its type and permissions, as stat(2) shows them; 0 without one.
        owner: the user that has the file, in the initial user namespace; 0 without one.
        execs: how often it has called exec since it was made, None where its parent is another one than
            who made it, or calls exec itself: then it cannot be told.
        exec_id: changes with each exec.
        ppid: the process that made it, or has inherited it.
        tracer: the process that traces its first thread, None for nobody.
        address: of the ``task_struct``.
    """

    pid: int
    name: str
    kernel_thread: bool
    memory: Va | None
    path: str
    deleted: bool
    device: str
    inode: int
    mode: int
    owner: int
    execs: int | None
    exec_id: int
    ppid: int
    tracer: int | None
    address: Va
