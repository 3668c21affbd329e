"""What detectors say of guests that nobody tampers with, at rest; at work they are looked at elsewhere.

The lab's guest has a few odd processes of its own from the start (tests/guests/lab/init/population.c): what
a detector says of the guest at rest must be about just those.
"""

from qvmi.codepacks.detectors.container_escape import ContainerEscape
from qvmi.codepacks.detectors.credentials import CredentialWatch
from qvmi.codepacks.detectors.hidden_processes import HiddenProcesses
from qvmi.codepacks.detectors.hidden_sockets import HiddenSockets
from qvmi.codepacks.detectors.impostors import Impostors
from qvmi.codepacks.detectors.injection import Injection
from qvmi.codepacks.detectors.unusual_code import UnusualCode
from qvmi.semantics.guest_os import TaskView
from qvmi.semantics.linux.tasks.task_slab import TaskSlabs
from tests.guests.tamper.right_rows import as_user
from tests.guests.tamper.scene import Scene
from tests.guests.tamper.task_rows import running_in_no_list
from tests.guests.watched import Watched, of_pid, told


def test_nothing_is_found_in_a_guest_whose_structures_agree(its: Watched) -> None:
    assert its.look(HiddenProcesses()) == {}


def test_every_structure_of_a_guest_leads_to_its_processes(its: Watched) -> None:
    shown = {
        view: {row.pid for row in its.machine.guest.task_sightings() if row.view is view}
        for view in TaskView
    }
    truth = {task.pid for task in its.guest.settled_truth().processes}
    assert all(
        shown[view] >= truth
        for view in (TaskView.CHILDREN, TaskView.PIDS, TaskView.THREADS, TaskView.SLAB)
    )
    assert shown[TaskView.RUNNING] <= shown[TaskView.SLAB]
    inner = {its.process(name).pid for name in ("ns-init", "ns-child", "box-init", "box-inner")}
    assert shown[TaskView.INNER_PIDS] == inner


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


def test_code_that_is_no_files_is_told_of_whoever_has_it_and_of_nobody_else(its: Watched) -> None:
    assert told(its.look(UnusualCode()).values()) == {
        ("memfd-exe", "T1620"),
        ("deleted-exe", "T1070.004"),
        ("mappings", "T1055"),
    }


def test_writable_code_of_a_process_is_found_by_its_mapping(its: Watched) -> None:
    process = its.process("mappings")
    [row] = [
        row
        for row in its.machine.guest.mappings(process)
        if row.permissions == "rwxp" and not row.inode
    ]
    finding = its.sees(UnusualCode(), of_pid(process.pid, "T1055"))
    assert finding.evidence[0].address == row.address
    maps = its.guest.run(f"grep rwxp /proc/{process.pid}/maps").decode()
    assert maps.startswith(f"{row.start:x}-{row.end:x} rwxp ")


def test_who_was_root_for_a_moment_and_gave_it_up_is_none(its: Watched) -> None:
    rights = CredentialWatch(steady_s=0.0)
    assert its.look(rights) == {}
    its.guest.run("mkdir -p /sbin; cp /bin/bash /sbin/bash; chmod 4755 /sbin/bash")
    with as_user(its, 'exec /sbin/bash -c "sleep 3000; true"', "bash") as shell:
        its.process("sleep", ppid=shell.pid)  # bash gave it up before
        assert its.guest.run(f"grep Uid /proc/{shell.pid}/status").split()[1:] == [b"1000"] * 4
        assert its.look(rights) == {}
    its.guest.run("rm /sbin/bash")


def test_a_tracer_that_started_what_it_traces_is_told_quietly(its: Watched) -> None:
    [finding] = its.look(Injection()).values()
    tracer = its.process("tracer")
    assert finding.claim.endswith(f"(traced) is traced by process {tracer.pid} (tracer)")
    assert finding.severity == "low"


def test_programs_called_like_kernel_threads_are_told_and_no_kernel_thread_is(its: Watched) -> None:
    names = ("[kthreadd]", "kworker/0:0", "[bold red]x[/]", "[/]")
    findings = its.look(Impostors()).values()
    assert told(findings) == {(name, "T1036.005") for name in names}
    assert {one.evidence[0].facts["pid"] for one in findings} == {
        its.process(name, kernel_thread=False).pid for name in names
    }
    assert {one.evidence[0].facts["path"] for one in findings} == {"/init"}


def test_sockets_of_a_guest_at_rest_are_held_and_tabled(its: Watched) -> None:
    findings = its.look(HiddenSockets()).values()
    assert {(one.technique, one.severity) for one in findings} == {("T1040", "low")}
    assert told(findings) == {("sockets", "T1040")}


def test_processes_of_containers_in_the_hosts_namespaces_are_told_and_no_others(
    its: Watched,
) -> None:
    names = ("in-docker", "in-pod", "in-odd-cgroup")
    findings = its.look(ContainerEscape()).values()
    assert told(findings) == {(name, "T1611") for name in names}
    [finding] = [one for one in findings if "(in-pod)" in one.claim and "mount" in one.claim]
    process, first = its.process("in-pod"), its.guest.run("readlink /proc/1/ns/mnt").strip()
    assert its.guest.run(f"readlink /proc/{process.pid}/ns/mnt").strip() == first
    assert f"mnt:[{finding.evidence[1].facts['mnt']}]".encode() == first


def test_on_arm64_all_structures_agree(arm: Scene) -> None:
    assert arm.its.look(HiddenProcesses()) == {}


def test_who_runs_in_no_list_and_says_that_it_is_the_idle_task_is_found(scene: Scene) -> None:
    with running_in_no_list(scene) as (sign,):
        address = sign.evidence[0].address
        assert address is not None
        place = address + scene.its.member("task_struct", "pid")
        with scene.its.written(place, bytes(4)):
            claim = "thread 0 (sh) is in rq."
            scene.its.sees(HiddenProcesses(), lambda finding: finding.claim.startswith(claim))
