"""Rows about tasks by the structure that leads to them."""

from enum import StrEnum

import msgspec

from qvmi.addr import Va

__all__ = ["TaskSighting", "TaskView"]


class TaskView(StrEnum):
    """This is a structure of the kernel's that leads to tasks."""

    LIST = "init_task.tasks"
    """The list of all processes, which signals to everybody walk."""
    PIDS = "init_pid_ns.idr"
    """The ids of the initial pid namespace, which /proc, and so ``ps``, reads."""
    INNER_PIDS = "pid_namespace.idr"
    """The ids of the other pid namespaces, which /proc within them reads."""
    CHILDREN = "task_struct.children"
    """The children of each task, from the first one on, which ``wait`` walks."""
    THREADS = "signal_struct.thread_head"
    """The threads of each process."""
    RUNNABLE = "rq.cfs_tasks"
    """The run queues: who runs, or waits for a CPU. What sleeps is not on them."""
    RUNNING = "rq.curr"
    """Whom each CPU runs."""
    LOADED = "cpu_tlbstate.loaded_mm"
    """Whose page tables each CPU has loaded; not told of aarch64."""
    SLAB = "slab of task_struct"
    """The memory that tasks are made in, whatever leads there."""


class TaskSighting(msgspec.Struct, frozen=True, gc=False):
    """This is one task as one structure of the kernel's leads to it.

    Args:
        view: the structure.
        pid: the task's own id, in the initial pid namespace.
        tgid: the id of the process that it is a thread of; equal to ``pid`` for its first one.
        state: the letter that ``ps`` shows.
        name: ``task_struct.comm``.
        address: of its ``task_struct``.
        start_time_s: seconds after the guest's boot.
    """

    view: TaskView
    pid: int
    tgid: int
    state: str
    name: str
    address: Va
    start_time_s: float
