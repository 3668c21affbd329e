"""Tasks cut out of the kernel's structures in a running guest, one structure after the other."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from qvmi.codepacks.codepack import Finding
from qvmi.codepacks.credentials import CredentialWatch
from qvmi.codepacks.hidden_processes import HiddenProcesses
from qvmi.semantics.guest_os import Process, TaskView
from qvmi.semantics.linux.task_slab import TaskSlabs
from tests.guests.aarch64_guests import aarch64
from tests.guests.lab import GuestConfig, Lab
from tests.guests.pool import GuestPool
from tests.guests.watched import POINTER, Watched, unlinked, watched

PACK: Final = HiddenProcesses()
KERNELS: Final = ("6.1", "7.x")
EXIT_DEAD: Final = (0x10).to_bytes(4, "little")
CHILDREN, LIST, PIDS, THREADS = TaskView.CHILDREN, TaskView.LIST, TaskView.PIDS, TaskView.THREADS


@pytest.fixture(scope="module", params=KERNELS)
def its(lab: Lab, profiles: Path, request: pytest.FixtureRequest) -> Iterator[Watched]:
    with ExitStack() as stack:
        guest = GuestPool(lab, stack).restore(GuestConfig(kernel=request.param))
        yield stack.enter_context(watched(guest, profiles))


@contextmanager
def without_pid(its: Watched, process: Process) -> Iterator[None]:
    """This makes the pid of a process lead to nobody, neither as a process nor as a thread."""
    pid = its.pointer(process.address + its.member("task_struct", "thread_pid"))
    heads = pid + its.member("pid", "tasks")
    with its.written(heads, bytes(2 * POINTER.size)):
        yield


def missing(pid: int, view: TaskView) -> Callable[[Finding], bool]:
    """This recognises the finding that a task is not in a structure."""

    def is_it(finding: Finding) -> bool:
        absent = finding.evidence[-1]
        pids = {one.facts.get("pid") for one in finding.evidence}
        return not absent.present and absent.view == view and pid in pids

    return is_it


def views(finding: Finding) -> set[str]:
    return {one.view for one in finding.evidence if one.present}


def test_nothing_is_found_in_a_guest_whose_structures_agree(its: Watched) -> None:
    assert its.look(PACK) == {}


def test_every_structure_of_a_guest_leads_to_its_processes(its: Watched) -> None:
    shown = {
        view: {row.pid for row in its.machine.guest.task_sightings() if row.view is view}
        for view in TaskView
    }
    truth = {task.pid for task in its.guest.settled_truth().processes}
    assert all(shown[view] >= truth for view in (CHILDREN, PIDS, THREADS, TaskView.SLAB))
    assert shown[TaskView.RUNNING] <= shown[TaskView.SLAB]
    inner = {its.process(name).pid for name in ("ns-init", "ns-child", "box-init", "box-inner")}
    assert shown[TaskView.INNER_PIDS] == inner


def test_a_process_off_the_task_list_is_shown_by_all_the_others(its: Watched) -> None:
    process = its.process("httpd")
    with unlinked(its, process.address + its.member("task_struct", "tasks")):
        finding = its.sees(PACK, missing(process.pid, LIST))
    assert views(finding) >= {PIDS, CHILDREN, THREADS, TaskView.SLAB}
    assert {one.address for one in finding.evidence[:-1]} == {process.address}


def test_a_process_that_is_in_no_list_at_all_is_found_in_its_slab(its: Watched) -> None:
    process = its.process("nc")
    task = process.address
    with (
        unlinked(its, task + its.member("task_struct", "tasks")),
        unlinked(its, task + its.member("task_struct", "sibling")),
        without_pid(its, process),
    ):
        findings = [its.sees(PACK, missing(process.pid, view)) for view in (LIST, PIDS, CHILDREN)]
        assert str(process.pid).encode() not in its.guest.run("ps -o pid").split()
    assert {view for finding in findings for view in views(finding)} == {TaskView.SLAB}


def test_a_process_in_no_list_that_says_it_is_dead_is_found_all_the_same(its: Watched) -> None:
    process = its.process("nc")
    task = process.address
    with (
        unlinked(its, task + its.member("task_struct", "tasks")),
        unlinked(its, task + its.member("task_struct", "sibling")),
        without_pid(its, process),
        its.written(task + its.member("task_struct", "exit_state"), EXIT_DEAD),
    ):
        finding = its.sees(PACK, missing(process.pid, LIST))
    assert views(finding) == {TaskView.SLAB}


def test_a_search_that_time_runs_out_for_goes_on_in_the_next_look(its: Watched) -> None:
    guest, now, passing = its.machine.guest, 0.0, 60.0

    def clock() -> float:
        nonlocal now
        now += passing
        return now

    with its.machine.paused():
        of_all = (guest.kernel.space, guest.kernel.symbols, guest.memmap)
        everybody = set(TaskSlabs(*of_all).objects())
        slabs = TaskSlabs(*of_all, clock=clock)
        in_a_hurry = set(slabs.objects())
        passing = 0.0
        with_time = set(slabs.objects())
    assert in_a_hurry < with_time == everybody


def test_a_process_in_no_list_is_found_where_it_runs(its: Watched) -> None:
    its.start("sh -c 'while :; do :; done'")
    process = its.process("sh", state="R")
    try:
        task = process.address
        with (
            unlinked(its, task + its.member("task_struct", "tasks")),
            unlinked(its, task + its.member("task_struct", "sibling")),
        ):
            seen = its.sees(
                PACK,
                lambda finding: (
                    missing(process.pid, LIST)(finding)
                    and views(finding) >= {TaskView.RUNNING, TaskView.RUNNABLE, TaskView.LOADED}
                ),
            )
            with its.written(task + its.member("task_struct", "pid"), bytes(4)):  # as the idle have
                its.sees(PACK, lambda finding: finding.claim.startswith("thread 0 (sh) is in rq."))
    finally:
        its.guest.run(f"kill -9 {process.pid}")
    assert {one.address for one in seen.evidence if one.present} == {process.address}


def test_a_process_of_an_inner_namespace_is_found_by_that_namespaces_table(its: Watched) -> None:
    process = its.process("ns-child")
    with unlinked(its, process.address + its.member("task_struct", "tasks")):
        assert TaskView.INNER_PIDS in views(its.sees(PACK, missing(process.pid, LIST)))


def test_a_thread_that_its_process_does_not_list_is_found(its: Watched) -> None:
    process = its.process("threads")
    threads = [one for one in its.machine.guest.threads() if one.tgid == process.pid]
    thread = next(one for one in threads if one.pid != process.pid)
    with unlinked(its, thread.address + its.member("task_struct", "thread_node")):
        finding = its.sees(PACK, missing(thread.pid, THREADS))
    assert views(finding) == {PIDS, TaskView.SLAB}
    assert finding.claim.startswith(f"thread {thread.pid} ")


def test_a_bind_mount_over_a_process_in_proc_is_found(its: Watched) -> None:
    process = its.process("httpd")
    its.guest.run(f"mkdir -p /run/empty; mount --bind /run/empty /proc/{process.pid}")
    try:
        finding = its.sees(PACK, lambda one: one.technique == "T1564.013")
        assert its.guest.run(f"ls /proc/{process.pid}") == b""
    finally:
        its.guest.run(f"umount /proc/{process.pid}")
    assert finding.evidence[0].facts["path"] == f"/proc/{process.pid}"
    its.misses(PACK, lambda one: one.technique == "T1564.013")


@pytest.fixture(scope="module")
def arm(lab: Lab, profiles: Path) -> Iterator[Watched]:
    with ExitStack() as stack:
        guest = GuestPool(lab, stack).restore(aarch64(gdbstub=True))
        yield stack.enter_context(watched(guest, profiles))


def test_on_aarch64_all_structures_agree_and_tell_who_is_off_the_task_list(arm: Watched) -> None:
    assert arm.look(PACK) == {}
    process = arm.process("httpd")
    with unlinked(arm, process.address + arm.member("task_struct", "tasks")):
        finding = arm.sees(PACK, missing(process.pid, LIST))
    assert views(finding) >= {PIDS, CHILDREN, THREADS, TaskView.SLAB}


def test_on_aarch64_a_user_that_is_overwritten_is_told(arm: Watched) -> None:
    pack = CredentialWatch(steady_s=0.0)
    pid = arm.start("su user -c 'exec sleep 2998'")
    process = arm.process("sleep", pid=pid)
    assert arm.look(pack) == {}
    cred = arm.pointer(process.address + arm.member("task_struct", "real_cred"))
    with arm.written(cred + arm.member("cred", "euid"), bytes(4)):
        finding = arm.sees(pack, lambda one: one.technique == "T1068")
        assert arm.guest.run(f"grep Uid /proc/{pid}/status").split()[2] == b"0"
    arm.guest.run(f"kill -9 {pid}")
    assert finding.evidence[1].facts["euid"] == 0
