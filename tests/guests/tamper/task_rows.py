"""Processes and threads that are hidden: the rows that the codepack of hidden processes must tell."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from qvmi.codepacks.detectors.hidden_processes import HiddenProcesses
from qvmi.semantics.guest_os import Process, TaskView
from tests.guests.tamper.mutation import Mutation
from tests.guests.tamper.scenario import Scenario, Shown, Sign, Way
from tests.guests.tamper.scene import Scene
from tests.guests.watched import POINTER, Watched, unlinked

__all__ = ["TASK_ROWS", "running_in_no_list", "without_pid"]

_LIST, _PIDS, _CHILDREN, _THREADS = (
    *(TaskView.LIST, TaskView.PIDS),
    *(TaskView.CHILDREN, TaskView.THREADS),
)
_EXIT_DEAD: Final = (0x10).to_bytes(4, "little")
"""include/linux/sched.h, ``EXIT_DEAD``."""


def _missing(process: Process, whole: TaskView, *shown: TaskView, only: bool = False) -> Sign:
    """This is that a process is in some structures, and not in one that has all."""
    return Sign(
        claim=f"process {process.pid} ({process.name}) is in {shown[0]} but not in {whole}",
        evidence=(
            *(Shown(view, address=process.address, facts={"pid": process.pid}) for view in shown),
            Shown(whole, present=False),
        ),
        only=only,
    )


@contextmanager
def _off_the_list(its: Watched, process: Process) -> Iterator[None]:
    with unlinked(its, process.address + its.member("task_struct", "tasks")):
        yield


@contextmanager
def without_pid(its: Watched, process: Process) -> Iterator[None]:
    """This makes the pid of a process lead to nobody, neither as a process nor as a thread."""
    pid = its.pointer(process.address + its.member("task_struct", "thread_pid"))
    with its.written(pid + its.member("pid", "tasks"), bytes(2 * POINTER.size)):
        yield


@contextmanager
def _unlinked_process(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    process = scene.its.process("httpd")
    with _off_the_list(scene.its, process):
        # /proc still shows it.
        assert f"{process.pid}" in scene.run("ps -o pid").split()
        yield (_missing(process, _LIST, _PIDS, _CHILDREN, _THREADS, TaskView.SLAB),)


@contextmanager
def _pid_of_nobody(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    process = scene.its.process("nobody")
    with without_pid(scene.its, process):
        assert f"{process.pid}" not in scene.run("ps -o pid").split()
        yield (_missing(process, _PIDS, _LIST, _CHILDREN),)


@contextmanager
def _in_no_list(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    its = scene.its
    process = its.process("nc")
    with ExitStack() as undo:
        undo.enter_context(_off_the_list(its, process))
        sibling = process.address + its.member("task_struct", "sibling")
        undo.enter_context(unlinked(its, sibling))
        undo.enter_context(without_pid(its, process))
        assert f"{process.pid}" not in scene.run("ps -o pid").split()
        yield tuple(
            _missing(process, whole, TaskView.SLAB, only=True)
            for whole in (_LIST, _PIDS, _CHILDREN)
        )


@contextmanager
def _dead_in_no_list(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    its = scene.its
    process = its.process("nc")
    place = process.address + its.member("task_struct", "exit_state")
    with _in_no_list(scene) as signs, its.written(place, _EXIT_DEAD):
        yield signs[:1]


@contextmanager
def running_in_no_list(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    """This starts a program that goes on running, and takes it out of lists for the length of the block."""
    its = scene.its
    pid = its.start("sh -c 'while :; do :; done'")
    try:
        process = its.process("sh", pid=pid, state="R")
        with _off_the_list(its, process):
            sibling = process.address + its.member("task_struct", "sibling")
            with unlinked(its, sibling):
                views = (TaskView.RUNNING, TaskView.RUNNABLE, TaskView.LOADED)
                yield (_missing(process, _LIST, _PIDS, *views),)
    finally:
        scene.run(f"kill -9 {pid}")


@contextmanager
def _inner_process(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    process = scene.its.process("ns-child")
    with _off_the_list(scene.its, process):
        yield (_missing(process, _LIST, _PIDS, TaskView.INNER_PIDS),)


@contextmanager
def _thread(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    its = scene.its
    process = its.process("threads")
    threads = [one for one in its.machine.guest.threads() if one.tgid == process.pid]
    thread = next(one for one in threads if one.pid != process.pid)
    with unlinked(its, thread.address + its.member("task_struct", "thread_node")):
        views = (_PIDS, TaskView.SLAB)
        evidence = tuple(Shown(view, address=thread.address) for view in views)
        claim = f"thread {thread.pid} ({thread.name}) is in {_PIDS} but not in {_THREADS}"
        yield (Sign(claim, (*evidence, Shown(_THREADS, present=False)), only=True),)


@contextmanager
def _bind_mount(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    place = f"/proc/{scene.its.process('httpd').pid}"
    scene.run(f"mkdir -p /run/empty; mount --bind /run/empty {place}")
    try:
        assert scene.run(f"ls {place}") == ""
        shown = Shown("mnt_namespace", facts={"path": place, "root": "/empty"})
        yield (Sign(f"is mounted on {place}, and hides that process from ps", (shown,)),)
    finally:
        scene.run(f"umount {place}")


_MODULE: Final = "codepacks.detectors.hidden_processes"
_FORGETS_THE_FIRST: Final = Mutation(
    "codepacks.detectors.seen_twice", "if key in first]", "if key not in first]"
)
_ASKS_THE_LIST_ALONE: Final = Mutation(_MODULE, "not in hidden and _kind(", "in hidden and _kind(")
_TAKES_ALL_FOR_PROCESSES: Final = Mutation(_MODULE, "or task.pid == task.tgid", "or task.pid > 0")


_SEES_NO_SLABS: Final = Mutation(
    "semantics.linux.tasks.task_slab",
    "range(first + pad, end - size",
    "range(first + pad, first - size",
)

_ROOTKIT: Final = ("hidden-processes", "T1014", Way.OUTSIDE)

TASK_ROWS: Final = (
    Scenario(
        *("a process is taken off the task list", *_ROOTKIT, _unlinked_process, HiddenProcesses),
        on_arm64=True,
        mutations=(_FORGETS_THE_FIRST, _ASKS_THE_LIST_ALONE),
    ),
    Scenario(
        *("a pid is made to lead to nobody", *_ROOTKIT, _pid_of_nobody, HiddenProcesses),
        on_arm64=True,
        mutations=(_ASKS_THE_LIST_ALONE,),
    ),
    Scenario(
        *("a process is taken out of every list", *_ROOTKIT, _in_no_list, HiddenProcesses),
        mutations=(_SEES_NO_SLABS,),
    ),
    Scenario(
        *("a process in no list goes on running", *_ROOTKIT, running_in_no_list, HiddenProcesses),
        depends=True,
    ),
    Scenario(
        *("a process in no list says that it is dead", *_ROOTKIT, _dead_in_no_list),
        HiddenProcesses,
    ),
    Scenario(
        *("a process of an inner pid namespace is hidden", *_ROOTKIT, _inner_process),
        HiddenProcesses,
    ),
    Scenario(
        *("a thread is taken off its process's list", *_ROOTKIT, _thread, HiddenProcesses),
        mutations=(_TAKES_ALL_FOR_PROCESSES,),
    ),
    Scenario(
        *("a mount covers a process's folder in /proc", "hidden-processes", "T1564.013"),
        *(Way.INSIDE, _bind_mount, HiddenProcesses),
        mutations=(Mutation(_MODULE, "fullmatch(mount.path)", "fullmatch(mount.root)"),),
    ),
)
