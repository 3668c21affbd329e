"""Rows about processes: who runs, how it was called and what it was given."""

import msgspec

from qvmi.addr import Va
from qvmi.errors import UsageError

__all__ = ["CommandLine", "Process", "Thread", "Variable", "require_task"]


class Process(msgspec.Struct, frozen=True, gc=False):
    r"""This is one process: a thread group of the guest.

    Args:
        pid: its id in the initial pid namespace. Corresponds to ``task_struct.pid`` of the leader.
        tgid: its thread group's id; equal to ``pid``.
        ppid: thread group id of ``task_struct.real_parent``; 0 for the first ones.
        uid: real user id, in the initial user namespace.
        gid: real group id, in the initial user namespace.
        state: the letter that ``ps`` shows: R, S, D, T, t, X, Z, P or I.
        name: ``task_struct.comm``, bytes that are no UTF-8 written as ``\xNN``; at most 15 bytes
            in the guest. It is the guest's word: escape it for whatever it is printed on. In the
            moment of a change it may be half the old one; kernels newer than 6.12 show that in /proc too.
        address: of its leader's ``task_struct``.
        kernel_thread: whether ``PF_KTHREAD`` is set.
        start_time_s: seconds after the guest's boot, suspended time included.
    """

    pid: int
    tgid: int
    ppid: int
    uid: int
    gid: int
    state: str
    name: str
    address: Va
    kernel_thread: bool
    start_time_s: float


class Thread(msgspec.Struct, frozen=True, gc=False):
    """This is one thread; the fields are those of :class:`Process`.

    Args:
        pid: the thread's own id. Corresponds to ``task_struct.pid``.
        tgid: the id of the process it belongs to.
        state: the letter that ``ps`` shows.
        name: the thread's own ``task_struct.comm``.
        address: of its ``task_struct``.
        start_time_s: seconds after the guest's boot.
    """

    pid: int
    tgid: int
    state: str
    name: str
    address: Va
    start_time_s: float


def require_task(given: object) -> None:
    """This raises UsageError for what is no process or thread, such as a pid alone.

    A pid may be another process's by now; a row has the address and start time that tell it.
    """
    if not isinstance(given, Process | Thread):
        raise UsageError(
            f"{given!r} is no process: give a row of processes(), such as"
            " guest.processes().find(pid=1), which is None where there is none"
        )


class CommandLine(msgspec.Struct, frozen=True, gc=False):
    """This is how a process was called, as its own memory says now: it may have written there.

    Args:
        pid: of the process.
        arguments: its words; empty for kernel threads and zombies.
        name: ``task_struct.comm``.
        address: of its leader's ``task_struct``.
    """

    pid: int
    arguments: tuple[str, ...]
    name: str
    address: Va


class Variable(msgspec.Struct, frozen=True, gc=False):
    """This is one variable of the environment that a process was given.

    Args:
        pid: of the process.
        name: what stands before the first ``=``.
        value: what stands behind it; None where there is none.
    """

    pid: int
    name: str
    value: str | None
