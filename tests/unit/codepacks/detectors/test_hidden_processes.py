"""The comparison of the task list with the pid namespace."""

import random
from collections.abc import Sequence

import msgspec
import pytest

from qvmi.addr import Va
from qvmi.codepacks.codepack import Finding
from qvmi.codepacks.confirmation import Confirmation
from qvmi.codepacks.detectors.hidden_processes import HiddenProcesses
from qvmi.codepacks.observed_guest import ObservedGuest
from qvmi.errors import WalkFailed
from qvmi.semantics.guest_os import Gap, Listing, Process, TaskSighting, TaskView
from qvmi.testing import FakeGuest, FakeMemory, fake_mount, fake_process
from qvmi.view import Provenance, Taken

INIT, SHELL, EVIL = (
    fake_process(1, name="init"),
    fake_process(7, name="sh"),
    fake_process(666, name="evil"),
)
GAP = Gap("tasks", None, "torn")


def inspect(guest: FakeGuest) -> list[Finding]:
    return list(HiddenProcesses().inspect(guest, FakeMemory({})))


def shown(processes: Sequence[Process], process_ids: Sequence[Process]) -> FakeGuest:
    return FakeGuest(processes=processes, process_ids=process_ids)


def test_finds_nothing_where_both_views_agree() -> None:
    guest = shown([INIT, SHELL], [SHELL, INIT])
    assert inspect(guest) == []
    assert guest.calls == ["processes", "process_ids", "task_sightings", "mounts"]


def test_finds_a_process_cut_out_of_the_task_list() -> None:
    [finding] = inspect(shown([INIT], [INIT, EVIL]))
    assert (finding.severity, finding.technique) == ("high", "T1014")
    assert "666 (evil) is in init_pid_ns.idr but not in init_task.tasks" in finding.claim
    present, absent = finding.evidence
    assert (present.view, present.present, present.address) == (
        "init_pid_ns.idr",
        True,
        EVIL.address,
    )
    assert (present.facts["pid"], present.facts["uid"], present.facts["name"]) == (666, 0, "evil")
    assert (absent.view, absent.present, absent.address) == ("init_task.tasks", False, None)
    assert absent.facts == {"tasks": 1, "gaps": 0}


def test_finds_a_process_cut_out_of_the_pid_namespace() -> None:
    [finding] = inspect(shown([INIT, EVIL], [INIT]))
    assert "is in init_task.tasks but not in init_pid_ns.idr" in finding.claim


def test_finds_a_process_in_whose_place_another_is_shown() -> None:
    pretender = msgspec.structs.replace(SHELL, pid=EVIL.pid, name="evil")
    findings = inspect(shown([INIT, pretender], [INIT, EVIL]))
    assert len(findings) == 2


def test_an_old_address_with_another_start_time_is_another_process() -> None:
    later = msgspec.structs.replace(EVIL, start_time_s=EVIL.start_time_s + 1)
    keys = [finding.key for finding in inspect(shown([INIT, later], [INIT, EVIL]))]
    assert len(set(keys)) == 2


def test_the_key_stays_when_the_process_changes_its_name_state_or_ids() -> None:
    changed = msgspec.structs.replace(EVIL, name="kworker", state="R", uid=0, pid=667, ppid=2)
    [first], [second] = (inspect(shown([INIT], [INIT, one])) for one in (EVIL, changed))
    assert first.key == second.key


def test_a_process_born_between_the_two_readings_is_none() -> None:
    guest = shown([INIT, SHELL], [INIT, SHELL])
    guest.show_processes([INIT], once=True)
    assert inspect(guest) == []


def test_a_process_that_dies_between_the_two_readings_is_none() -> None:
    guest = shown([INIT], [INIT])
    guest.show_processes([INIT, SHELL], once=True)
    assert inspect(guest) == []


def test_two_processes_that_race_one_after_the_other_are_none() -> None:
    guest = FakeGuest()
    guest.show_processes([INIT], once=True)
    guest.show_process_ids([INIT, SHELL], once=True)
    guest.show_processes([INIT, SHELL], once=True)
    guest.show_process_ids([INIT, SHELL, EVIL], once=True)
    assert inspect(guest) == []


def test_a_zombie_is_compared_like_any_other() -> None:
    zombie = msgspec.structs.replace(EVIL, state="Z")
    assert len(inspect(shown([INIT], [INIT, zombie]))) == 1
    assert inspect(shown([INIT, zombie], [INIT, zombie])) == []


def test_an_exiting_process_that_stays_in_one_view_of_a_running_guest_is_a_finding() -> None:
    exiting = msgspec.structs.replace(EVIL, state="X")
    assert len(inspect(shown([INIT], [INIT, exiting]))) == 1


@pytest.mark.parametrize("taken", [Taken.PAUSED, Taken.CAPTURED, Taken.DUMP])
def test_an_exiting_process_of_a_guest_that_stands_still_is_none(taken: Taken) -> None:
    exiting = msgspec.structs.replace(EVIL, state="X")
    guest = shown([INIT], [INIT, exiting])
    guest.provenance = Provenance(taken, at=1.0)
    assert inspect(guest) == []


@pytest.mark.parametrize("answers", [1, 2])
def test_what_is_missing_behind_a_gap_once_is_not_believed(answers: int) -> None:
    guest = FakeGuest(processes=[INIT, SHELL])
    for _ in range(answers):  # of one look: both of its readings, or the first one alone
        guest.show_processes([INIT], gaps=[GAP], once=True)
    assert confirmed(guest, rounds=1000) == []


@pytest.mark.parametrize("every", [2, 7])
def test_gaps_that_come_and_go_are_no_finding(every: int) -> None:
    guest = FakeGuest(processes=[INIT, SHELL])
    for number in range(2000):
        gone = number % every == 0
        guest.show_processes([INIT] if gone else [INIT, SHELL], gaps=[GAP] * gone, once=True)
    assert confirmed(guest, rounds=1000) == []


def test_who_stays_missing_behind_a_gap_is_found_after_seconds() -> None:
    guest = FakeGuest(process_ids=[INIT, EVIL])
    guest.show_processes([INIT], gaps=[GAP])
    findings = confirmed(guest, rounds=1000)
    assert [one.severity for _, one in findings] == ["high", "medium"]
    assert all(5.0 <= number * LOOK_S < 5.1 for number, _ in findings)
    claim = findings[0][1].claim
    assert "666 (evil) is in init_pid_ns.idr but not in init_task.tasks" in claim
    assert "cannot be walked whole" in claim


def test_who_is_missing_behind_a_gap_that_comes_and_goes_is_found() -> None:
    guest = FakeGuest(process_ids=[INIT, EVIL])
    for number in range(400):
        guest.show_processes([INIT], gaps=[GAP] * (number // 2 % 2), once=True)
    [(number, finding)] = confirmed(guest, rounds=100)
    assert number < 5
    assert "666 (evil)" in finding.claim


def test_a_gap_that_stays_is_found_though_nobody_is_known_to_be_missing() -> None:
    guest = FakeGuest(processes=[INIT])
    guest.show_processes([INIT], gaps=[Gap("task_struct.tasks", EVIL.address, "points back to 0")])
    [(number, finding)] = confirmed(guest, rounds=1000)
    assert 5.0 <= number * LOOK_S < 5.1
    assert finding.claim == (
        f"init_task.tasks cannot be walked past {EVIL.address:#x}: somebody may hide behind it"
    )
    [seen] = finding.evidence
    assert (seen.address, seen.facts["reason"]) == (EVIL.address, "points back to 0")


def test_gaps_that_wander_are_no_finding() -> None:
    guest = FakeGuest(processes=[INIT])
    for number in range(2000):
        guest.show_processes([INIT], gaps=[Gap("tasks", Va(number), "torn")], once=True)
    assert confirmed(guest, rounds=1000) == []


def test_many_gaps_do_not_crowd_out_who_is_missing() -> None:
    guest = FakeGuest(process_ids=[INIT, EVIL])
    guest.show_processes([INIT], gaps=[Gap("tasks", Va(place), "torn") for place in range(5000)])
    findings = inspect(guest)
    assert "666 (evil)" in findings[0].claim
    assert len(findings) < 50


def test_a_gap_in_the_view_that_shows_a_process_hides_nothing() -> None:
    guest = shown([INIT], [INIT])
    guest.show_process_ids([INIT, EVIL], gaps=[GAP])
    [(number, finding), *_] = confirmed(guest, rounds=1000)
    assert (number, finding.severity) == (1, "high")


def sighted(view: TaskView, process: Process, **changes: object) -> TaskSighting:
    sighting = TaskSighting(
        view,
        process.pid,
        process.tgid,
        process.state,
        process.name,
        process.address,
        process.start_time_s,
    )
    return msgspec.structs.replace(sighting, **changes)


def healthy() -> list[TaskSighting]:
    whole = (TaskView.PIDS, TaskView.CHILDREN, TaskView.THREADS, TaskView.SLAB)
    return [sighted(view, process) for view in whole for process in (INIT, SHELL)]


def test_finds_nothing_where_all_views_agree() -> None:
    assert inspect(FakeGuest(processes=[INIT, SHELL], task_sightings=healthy())) == []


@pytest.mark.parametrize(
    "view",
    [TaskView.SLAB, TaskView.RUNNABLE, TaskView.RUNNING, TaskView.LOADED, TaskView.INNER_PIDS],
)
def test_finds_a_process_that_only_one_other_view_shows_after_seconds(view: TaskView) -> None:
    guest = FakeGuest(processes=[INIT, SHELL], task_sightings=[*healthy(), sighted(view, EVIL)])
    found = confirmed(guest, rounds=1000)
    assert all(5.0 <= number * LOOK_S < 5.1 for number, _ in found)
    assert [finding.claim for _, finding in found] == [
        f"process 666 (evil) is in {view} but not in {whole}"
        for whole in ("init_task.tasks", "init_pid_ns.idr", "task_struct.children")
    ]


def test_tells_every_view_that_shows_whom_the_task_list_hides() -> None:
    shown_by = [
        sighted(view, EVIL) for view in TaskView if view not in {TaskView.LIST, TaskView.INNER_PIDS}
    ]
    [finding] = inspect(
        FakeGuest(
            processes=[INIT, SHELL],
            process_ids=[INIT, SHELL, EVIL],
            task_sightings=[*healthy(), *shown_by],
        )
    )
    assert {one.view for one in finding.evidence if one.present} == {
        *TaskView,
    } - {TaskView.LIST, TaskView.INNER_PIDS}
    assert [one.view for one in finding.evidence if not one.present] == ["init_task.tasks"]


def test_finds_a_process_that_is_nobodys_child() -> None:
    guest = FakeGuest(processes=[INIT, SHELL, EVIL], task_sightings=healthy())
    claims = [finding.claim for _, finding in confirmed(guest, rounds=1000)]
    assert claims == ["process 666 (evil) is in init_pid_ns.idr but not in task_struct.children"]


@pytest.mark.parametrize("missing", [TaskView.THREADS, TaskView.PIDS])
def test_finds_a_thread_that_one_view_hides(missing: TaskView) -> None:
    views = {TaskView.THREADS, TaskView.PIDS, TaskView.SLAB} - {missing}
    threads = [sighted(view, EVIL, tgid=SHELL.pid) for view in sorted(views)]
    guest = FakeGuest(processes=[INIT, SHELL], task_sightings=[*healthy(), *threads])
    [(_, finding)] = confirmed(guest, rounds=1000)
    assert finding.claim.startswith("thread 666 (evil) is in ")
    assert finding.claim.endswith(f"but not in {missing}")


def test_finds_that_all_children_are_cut_off() -> None:
    rows = [row for row in healthy() if row.view is not TaskView.CHILDREN]
    found = confirmed(FakeGuest(processes=[INIT, SHELL], task_sightings=rows), rounds=1000)
    assert len(found) == 2


def test_a_task_half_made_that_is_not_there_again_is_none() -> None:
    guest = FakeGuest(processes=[INIT, SHELL], task_sightings=healthy())
    guest.show("task_sightings", [*healthy(), sighted(TaskView.SLAB, EVIL)], once=True)
    assert inspect(guest) == []


def test_a_mount_that_covers_a_process_in_proc_is_found() -> None:
    mount = fake_mount("/proc/666", root="/empty", filesystem="tmpfs")
    others = [fake_mount("/proc"), fake_mount("/proc/sys/fs/binfmt_misc"), fake_mount("/procs/1")]
    [finding] = inspect(FakeGuest(processes=[INIT], mounts=[mount, *others]))
    assert (finding.technique, finding.evidence[0].address) == ("T1564.013", mount.address)
    assert finding.claim == "tmpfs is mounted on /proc/666, and hides that process from ps"


def test_a_view_that_cannot_be_had_is_no_finding() -> None:
    guest = shown([INIT], [INIT, EVIL])
    guest.fail_next("process_ids", WalkFailed("idr", "no root"))
    with pytest.raises(WalkFailed):
        inspect(guest)


LOOK_S = 0.01
"""Between two looks at a guest in a storm, on its own clock."""


class StormGuest(FakeGuest):
    """A guest in which processes are born and die between any two readings, in the kernel's order.

    A birth enters the list and then gets its pid, a death loses its pid and then leaves the list. A
    reading may fall between the two, and when the host takes the vCPU away just there, many do.
    """

    def __init__(self, seed: int, *, unlisted: bool = False, unknown: bool = False) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self._alive = [INIT]
        self._half_done: list[Process] = []
        self._unlisted = [EVIL] if unlisted else []
        self._unknown = [EVIL] if unknown else []
        self._born = 1000
        self._stalled = 0

    def processes(self) -> Listing[Process]:
        self._live()
        self.show_processes([*self._alive, *self._half_done, *self._unknown])
        return super().processes()

    def process_ids(self) -> Listing[Process]:
        self._live()
        self.show_process_ids([*self._alive, *self._unlisted])
        return super().process_ids()

    def _live(self) -> None:
        if self._stalled:
            self._stalled -= 1
            return
        if self._random.random() < 0.01:
            self._stalled = self._random.randrange(300)
        self._half_done = []
        for _ in range(self._random.randrange(20)):
            if len(self._alive) < 2 or self._random.random() < 0.5:
                self._alive.append(self._birth())
            else:
                self._alive.remove(self._random.choice(self._alive[1:]))
        if self._random.random() < 0.5:
            self._half_done = [self._birth()]
        elif len(self._alive) > 1:
            self._half_done = [msgspec.structs.replace(self._alive.pop(), state="X")]

    def _birth(self) -> Process:
        self._born += 1
        address = 1000 + self._born % 50  # addresses are used again and again
        return fake_process(address, start_time_s=float(self._born))


def confirmed(guest: FakeGuest, *, rounds: int) -> list[tuple[int, Finding]]:
    """Gives what is confirmed in so many looks, and in which look."""
    confirmation = Confirmation()
    raised = []
    for number in range(rounds):
        seen = ObservedGuest(guest, "hidden-processes")
        findings = list(HiddenProcesses().inspect(seen, FakeMemory({})))
        changes = confirmation.update(
            findings, complete=not seen.gap_count, at=number * LOOK_S, clock=number * LOOK_S
        )
        raised += [(number, one.finding) for one in changes.raised]
    return raised


@pytest.mark.parametrize("seed", range(4))
def test_a_storm_of_births_and_deaths_raises_nothing(seed: int) -> None:
    assert confirmed(StormGuest(seed), rounds=1000) == []


@pytest.mark.parametrize("seed", range(4))
def test_a_process_that_is_not_listed_is_raised_at_once_and_once_in_a_storm(seed: int) -> None:
    [(number, finding)] = confirmed(StormGuest(seed, unlisted=True), rounds=1000)
    assert number == 1
    assert finding.key == f"not in init_task.tasks: {EVIL.address:#x}@{EVIL.start_time_s!r}"


@pytest.mark.parametrize("seed", range(4))
def test_a_process_without_a_pid_is_raised_after_seconds_and_once_in_a_storm(seed: int) -> None:
    [(number, finding)] = confirmed(StormGuest(seed, unknown=True), rounds=1000)
    assert 5.0 <= number * LOOK_S < 5.1
    assert finding.key == f"not in init_pid_ns.idr: {EVIL.address:#x}@{EVIL.start_time_s!r}"
