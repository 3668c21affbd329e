"""What runs a codepack."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from qvmi.codepacks.alert import Alert, AlertState
from qvmi.codepacks.alert_budget import AlertBudget
from qvmi.codepacks.codepack import Finding, Unseen
from qvmi.codepacks.confirmation import Confirmed
from qvmi.codepacks.outgoing import MAX_SENT_KEPT, MAX_WAITING
from qvmi.codepacks.runner import Runner
from qvmi.codepacks.standing_alerts import StandingAlerts
from qvmi.codepacks.status import Sight, Status
from qvmi.errors import (
    BusError,
    MachineGone,
    NotDirect,
    QmpTimeout,
    QueryTimeout,
    StaleView,
    UnknownGuest,
    WalkFailed,
)
from qvmi.memory.physical import PhysicalMemory
from qvmi.semantics.guest_os import Gap, GuestOS
from qvmi.testing import FakeGuest, FakeMachine
from tests.asynchronous import asynchronous, until
from tests.unit.codepacks.packs import ScriptedPack, finding
from tests.unit.codepacks.recording_bus import RecordingBus

WAIT_S = 10.0
SETTLE_S = 0.1


class Findings:
    """A codepack's function that finds what the test set last, and counts its looks."""

    def __init__(self, *keys: str) -> None:
        self.keys = keys
        self.looks = 0

    def __call__(self, guest: GuestOS, _: PhysicalMemory) -> Iterable[Finding]:
        self.looks += 1
        guest.processes()
        return [finding(key) for key in self.keys]


@asynccontextmanager
async def running(
    runner: Runner, bus: RecordingBus | None = None
) -> AsyncIterator[tuple[RecordingBus, asyncio.Task[None]]]:
    bus = bus or RecordingBus()
    task = asyncio.create_task(runner.run(bus))
    try:
        yield bus, task
    finally:
        task.cancel()
        await asyncio.wait({task})


def statuses(bus: RecordingBus) -> list[Status]:
    return [message.read_body(Status) for message in bus.of_kind("status")]


def latest(bus: RecordingBus) -> Status:
    """Gives what it said last of itself, or that it has seen nothing yet."""
    return (statuses(bus) or [Status(sight=Sight.BLIND)])[-1]


def sights(bus: RecordingBus) -> list[Sight]:
    return [status.sight for status in statuses(bus)]


def alerts(bus: RecordingBus) -> list[Alert]:
    kinds = {AlertState.RAISED.value, AlertState.CLEARED.value}
    return [one.read_body(Alert) for one in bus.messages if one.kind in kinds]


def runner_of(
    pack: ScriptedPack,
    machine: FakeMachine | None = None,
    *,
    look_deadline_s: float = WAIT_S,
    kept: StandingAlerts | None = None,
    burst: int = 1_000_000,
) -> Runner:
    return Runner(
        pack,
        machine or FakeMachine(),
        vm="web",
        look_deadline_s=look_deadline_s,
        kept=kept,
        budget=AlertBudget(burst=burst, per_s=0.0),
    )


@asynchronous
async def test_a_confirmed_finding_is_published_once_and_once_when_it_is_gone() -> None:
    pack = ScriptedPack(Findings("k"))
    inspect = pack.inspect
    assert isinstance(inspect, Findings)
    async with running(runner_of(pack)) as (bus, _):
        await bus.until(lambda: len(alerts(bus)) == 1)
        inspect.keys = ()
        await bus.until(lambda: len(alerts(bus)) == 2)
        looks = inspect.looks
        await until(lambda: inspect.looks >= looks + 20)
        assert [(one.state, one.finding.key) for one in alerts(bus)] == [
            (AlertState.RAISED, "k"),
            (AlertState.CLEARED, "k"),
        ]


@asynchronous
async def test_what_must_settle_was_there_from_the_end_of_one_look_to_the_beginning_of_another() -> (
    None
):
    looks: list[tuple[float, float]] = []

    def inspect(_: GuestOS, __: PhysicalMemory) -> Iterable[Finding]:
        began = time.monotonic()
        # Each takes as long as the finding has to settle: two have taken twice that.
        threading.Event().wait(SETTLE_S)
        looks.append((began, time.monotonic()))
        return [msgspec.structs.replace(finding("k"), settle_s=SETTLE_S)]

    async with running(runner_of(ScriptedPack(inspect))) as (bus, _):
        await bus.until(lambda: bool(alerts(bus)))
    [alert] = alerts(bus)
    assert looks[alert.rounds - 1][0] - looks[0][1] >= SETTLE_S


@asynchronous
async def test_an_alert_tells_where_it_is_from_and_how_it_was_taken() -> None:
    async with running(runner_of(ScriptedPack(Findings("k"), name="pack"))) as (bus, _):
        await bus.until(lambda: bool(alerts(bus)))
    [message] = bus.of_kind("alert")
    assert message.topic.text == "qvmi/v1/web/pack/alert"
    alert = message.read_body(Alert)
    assert (alert.codepack, alert.rounds, alert.finding) == ("pack", 2, finding("k"))
    assert alert.held_by == "guard rails"
    assert alert.provenance == message.provenance == FakeGuest().provenance


@asynchronous
async def test_says_once_that_it_sees_everything() -> None:
    inspect = Findings()
    async with running(runner_of(ScriptedPack(inspect))) as (bus, _):
        await until(lambda: inspect.looks >= 20)
        assert sights(bus) == [Sight.FULL]


@asynchronous
async def test_a_codepack_that_fails_is_reported_and_run_again() -> None:
    looks = 0

    def inspect(_: GuestOS, __: PhysicalMemory) -> Iterable[Finding]:
        nonlocal looks
        looks += 1
        if looks <= 5:
            raise ZeroDivisionError("by accident")
        return [finding("k")]

    async with running(runner_of(ScriptedPack(inspect))) as (bus, _):
        await bus.until(lambda: bool(alerts(bus)))
    failed, full = statuses(bus)
    assert (failed.sight, full.sight) == (Sight.FAILED, Sight.FULL)
    assert "ZeroDivisionError: by accident" in failed.problem


@asynchronous
async def test_gaps_are_reported_and_are_not_taken_for_nothing_found() -> None:
    guest = FakeGuest()
    inspect = Findings("k")
    async with running(runner_of(ScriptedPack(inspect), FakeMachine(guest))) as (bus, _):
        await bus.until(lambda: len(alerts(bus)) == 1)
        guest.show_processes([], gaps=[Gap("tasks", None, "torn")])
        inspect.keys = ()
        await bus.until(lambda: sights(bus) == [Sight.FULL, Sight.GAPS])
        looks = inspect.looks
        await until(lambda: inspect.looks >= looks + 10)
        assert latest(bus).gaps == (Gap("tasks", None, "torn"),)
        assert len(alerts(bus)) == 1
        guest.show_processes([])
        await bus.until(lambda: len(alerts(bus)) == 2)


@asynchronous
async def test_a_walk_that_fails_is_blindness_and_clears_nothing() -> None:
    guest = FakeGuest()
    async with running(runner_of(ScriptedPack(Findings("k")), FakeMachine(guest))) as (bus, _):
        await bus.until(lambda: len(alerts(bus)) == 1)
        for _ in range(10):
            guest.fail_next("processes", WalkFailed("tasks", "a loop"))
        await bus.until(lambda: sights(bus) == [Sight.FULL, Sight.BLIND, Sight.FULL])
        assert "a loop" in statuses(bus)[1].problem
        assert len(alerts(bus)) == 1


@asynchronous
async def test_a_codepack_that_hangs_is_reported_and_stops_nobody_else() -> None:
    release, entered = threading.Event(), []

    def inspect(_: GuestOS, __: PhysicalMemory) -> Iterable[Finding]:
        entered.append(threading.current_thread())
        if len(entered) == 1:
            release.wait(WAIT_S)
        return [finding("k")]

    async with running(runner_of(ScriptedPack(inspect), look_deadline_s=0.01)) as (bus, _):
        await bus.until(lambda: sights(bus) == [Sight.LATE])
        for _ in range(20):
            await asyncio.sleep(0.002)  # rounds go by, and no second thread is begun
        assert len(entered) == 1
        release.set()
        await bus.until(lambda: bool(alerts(bus)))
        assert sights(bus) == [Sight.LATE, Sight.FULL]


@asynchronous
async def test_a_late_codepack_gets_no_more_answers_about_the_guest() -> None:
    fake = FakeGuest()
    release, problems = threading.Event(), []

    def inspect(guest: GuestOS, _: PhysicalMemory) -> Iterable[Finding]:
        release.wait(WAIT_S)
        try:
            guest.processes()
        except Exception as error:
            problems.append(str(error))
            raise
        return []

    async with running(
        runner_of(ScriptedPack(inspect), FakeMachine(fake), look_deadline_s=0.01)
    ) as (bus, _):
        await bus.until(lambda: sights(bus) == [Sight.LATE])
        assert fake.calls == []
        release.set()
        await bus.until(lambda: sights(bus) == [Sight.LATE, Sight.FULL])
    assert len(problems) == 1
    assert "after its time was up" in problems[0]


@asynchronous
async def test_cancelling_in_mid_look_waits_for_the_codepack_to_leave_the_guest() -> None:
    entered, left = threading.Event(), threading.Event()

    def inspect(guest: GuestOS, _: PhysicalMemory) -> Iterator[Finding]:
        try:
            while True:
                guest.processes()
                entered.set()
                yield finding("k")
        finally:
            left.set()

    task = asyncio.create_task(runner_of(ScriptedPack(inspect)).run(RecordingBus()))
    assert await asyncio.to_thread(entered.wait, WAIT_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left.is_set()


@asynchronous
async def test_cancelling_does_not_wait_for_a_codepack_that_does_not_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qvmi.codepacks.looker.WITHDRAW_GRACE_S", 0.01)
    entered, release = threading.Event(), threading.Event()

    def inspect(_: GuestOS, __: PhysicalMemory) -> Iterable[Finding]:
        entered.set()
        release.wait(WAIT_S)
        return []

    task = asyncio.create_task(runner_of(ScriptedPack(inspect)).run(RecordingBus()))
    assert await asyncio.to_thread(entered.wait, WAIT_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    release.set()


@asynchronous
async def test_a_reset_clears_what_was_raised_and_says_why() -> None:
    machine = FakeMachine()
    async with running(runner_of(ScriptedPack(Findings("k")), machine)) as (bus, _):
        await bus.until(lambda: len(alerts(bus)) == 1)
        machine.reset(FakeGuest())
        await bus.until(lambda: len(alerts(bus)) == 3)
    first, cleared, again = alerts(bus)
    assert [one.state for one in (first, cleared, again)] == [
        AlertState.RAISED,
        AlertState.CLEARED,
        AlertState.RAISED,
    ]
    assert "reset" in cleared.reason
    assert [message.epoch for message in bus.of_kind("alert")] == [0, 1]


@asynchronous
async def test_findings_of_a_look_that_a_reset_fell_into_are_not_believed() -> None:
    machine = FakeMachine()
    looks = 0

    def inspect(_: GuestOS, __: PhysicalMemory) -> Iterable[Finding]:
        nonlocal looks
        looks += 1
        machine.reset(FakeGuest())
        return [finding("k")]

    async with running(runner_of(ScriptedPack(inspect), machine)) as (bus, _):
        await bus.until(lambda: sights(bus) == [Sight.BLIND])
        await until(lambda: looks >= 10)
        assert alerts(bus) == []


@pytest.mark.parametrize(
    ("error", "refreshed"),
    [
        (UnknownGuest("firmware"), True),
        (StaleView("reset"), True),
        (QmpTimeout("stop", 5.0), False),
    ],
)
@asynchronous
async def test_a_machine_without_a_guest_is_blindness_and_looked_at_again(
    error: Exception, *, refreshed: bool
) -> None:
    machine = FakeMachine()
    machine.fail_next("guest", error)
    async with running(runner_of(ScriptedPack(Findings("k")), machine)) as (bus, _):
        await bus.until(lambda: bool(alerts(bus)))
        assert sights(bus) == [Sight.BLIND, Sight.FULL]
        assert ("refresh" in machine.calls) == refreshed


@asynchronous
async def test_a_machine_that_is_not_direct_is_looked_at_by_query() -> None:
    machine = FakeMachine(direct=False)
    async with running(runner_of(ScriptedPack(Findings("k")), machine)) as (bus, _):
        await bus.until(lambda: bool(alerts(bus)))
        assert sights(bus) == [Sight.FULL]
    assert machine.calls.count("query") >= 2


@pytest.mark.parametrize(
    ("error", "sight", "refreshed"),
    [
        (QueryTimeout(5.0), Sight.LATE, False),
        (StaleView("reset"), Sight.BLIND, True),
        (NotDirect("still"), Sight.BLIND, False),
    ],
)
@asynchronous
async def test_a_query_that_fails_is_told_and_tried_again(
    error: Exception, sight: Sight, *, refreshed: bool
) -> None:
    machine = FakeMachine(direct=False)
    machine.fail_next("query", error)
    async with running(runner_of(ScriptedPack(Findings("k")), machine)) as (bus, _):
        await bus.until(lambda: bool(alerts(bus)))
        assert sights(bus) == [sight, Sight.FULL]
        assert ("refresh" in machine.calls) == refreshed


@asynchronous
async def test_a_machine_without_a_guest_is_not_asked_at_every_look() -> None:
    machine = FakeMachine()
    for _ in range(50):
        machine.fail_next("guest", UnknownGuest("firmware"))
    async with running(runner_of(ScriptedPack(), machine)):
        await until(lambda: machine.calls.count("guest") >= 20)
        assert machine.calls.count("refresh") <= machine.calls.count("guest") / 4


@pytest.mark.parametrize("tells", ["run_state", "guest", "refresh"])
@asynchronous
async def test_a_machine_that_is_gone_ends_the_run_after_saying_so(tells: str) -> None:
    machine = FakeMachine()
    for member, error in (("guest", StaleView("reset")), (tells, MachineGone("watch"))):
        machine.fail_next(member, error)
    if tells == "guest":
        machine.fail_next("refresh", MachineGone("watch"))
    bus = RecordingBus()
    await asyncio.wait_for(runner_of(ScriptedPack(), machine).run(bus), WAIT_S)
    assert sights(bus) == [Sight.ENDED]
    assert "QEMU is gone" in statuses(bus)[0].problem


@asynchronous
async def test_a_machine_that_does_not_answer_is_looked_at_all_the_same() -> None:
    machine = FakeMachine()
    machine.fail_next("run_state", QmpTimeout("query-status", 5.0))
    async with running(runner_of(ScriptedPack(Findings("k")), machine)) as (bus, _):
        await bus.until(lambda: bool(alerts(bus)))
        assert sights(bus) == [Sight.FULL]


@asynchronous
async def test_a_codepack_cannot_end_its_run_by_claiming_that_the_machine_is_gone() -> None:
    def inspect(_: GuestOS, __: PhysicalMemory) -> Iterable[Finding]:
        raise MachineGone("a lie")

    machine = FakeMachine()
    async with running(runner_of(ScriptedPack(inspect), machine)) as (bus, task):
        await bus.until(lambda: sights(bus) == [Sight.BLIND])
        await until(lambda: machine.calls.count("guest") >= 10)
        assert not task.done()


@asynchronous
async def test_what_a_lost_bus_did_not_take_goes_to_the_next_one() -> None:
    runner = runner_of(ScriptedPack(Findings("k")))
    first, second = RecordingBus(), RecordingBus()
    first.fail_next(BusError("lost"))
    with pytest.raises(BusError, match="lost"):
        await runner.run(first)
    assert first.messages == []
    async with running(runner, second):
        await second.until(lambda: bool(alerts(second)))
    assert sights(second) == [Sight.FULL]


@asynchronous
async def test_what_was_sent_last_is_sent_again_over_the_next_bus_under_the_same_ids() -> None:
    inspect = Findings("k")
    runner = runner_of(ScriptedPack(inspect))
    first, second = RecordingBus(), RecordingBus()
    async with running(runner, first) as (_, task):
        await first.until(lambda: bool(alerts(first)))
        inspect.keys = ()
        first.fail_next(BusError("lost"))
        with pytest.raises(BusError):
            await asyncio.wait_for(task, WAIT_S)
    async with running(runner, second):
        await second.until(lambda: len(alerts(second)) == 2)
    assert second.messages[: len(first.messages)] == first.messages
    assert [one.state for one in alerts(second)] == [AlertState.RAISED, AlertState.CLEARED]


@asynchronous
async def test_keeps_a_bounded_number_of_messages_for_a_bus_that_is_away() -> None:
    inspect = Findings()
    runner = runner_of(ScriptedPack(inspect))
    bus = RecordingBus()
    for number in range(MAX_WAITING // 2 + 50):
        inspect.keys = tuple(f"{number} {half}" for half in range(2))
        for _ in range(2):
            bus.fail_next(BusError("away"))
            with suppress(BusError):
                await runner.run(bus)
    async with running(runner):
        back = RecordingBus()
        async with running(runner, back):
            await back.until(lambda: any(status.lost for status in statuses(back)))
    assert len(back.messages) <= MAX_WAITING + MAX_SENT_KEPT + 1


@asynchronous
async def test_a_guest_that_shows_too_much_to_follow_is_reported() -> None:
    inspect = Findings(*(str(number) for number in range(1000)))
    runner = runner_of(ScriptedPack(inspect))
    async with running(runner) as (bus, _):
        await bus.until(lambda: bool(alerts(bus)))
        inspect.keys = tuple(str(number) for number in range(500, 1500))
        await bus.until(lambda: Sight.GAPS in sights(bus))
        [status] = [one for one in statuses(bus) if one.sight is Sight.GAPS]
        assert "476 findings more than can be followed" in status.problem


def kept_in(folder: Path, *, vm: str = "web") -> StandingAlerts:
    return StandingAlerts(folder / "standing.json", vm=vm, codepack="scripted")


@asynchronous
async def test_what_was_raised_by_an_earlier_run_is_not_raised_again_but_stands(
    tmp_path: Path,
) -> None:
    inspect = Findings("a", "b")
    pack = ScriptedPack(inspect)
    async with running(runner_of(pack, kept=kept_in(tmp_path))) as (bus, _):
        await bus.until(lambda: bool(alerts(bus)))
        await until(lambda: len(kept_in(tmp_path).load()) == 2)
    inspect.keys = ("b", "c")
    async with running(runner_of(pack, kept=kept_in(tmp_path))) as (bus, _):
        await bus.until(lambda: len(alerts(bus)) == 2)
        said = {(one.state, one.finding.key) for one in alerts(bus)}
        assert said == {(AlertState.CLEARED, "a"), (AlertState.RAISED, "c")}
        assert statuses(bus)[0].standing == 2
        await bus.until(lambda: latest(bus).standing == 1)
        keys = {"b", "c"}
        await until(lambda: {one.finding.key for one in kept_in(tmp_path).load()} == keys)


@asynchronous
async def test_an_alert_that_was_not_out_when_the_run_ended_is_raised_by_the_next(
    tmp_path: Path,
) -> None:
    inspect = Findings("a")
    bus = RecordingBus()
    for _ in range(50):
        bus.fail_next(BusError("away"))
    runner = runner_of(ScriptedPack(inspect), kept=kept_in(tmp_path))
    for _ in range(5):
        with suppress(BusError):
            await runner.run(bus)
    assert kept_in(tmp_path).load() == ()
    async with running(runner_of(ScriptedPack(inspect), kept=kept_in(tmp_path))) as (back, _):
        await back.until(lambda: bool(alerts(back)))


@asynchronous
async def test_that_alerts_cannot_be_kept_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    runner = runner_of(ScriptedPack(Findings("a")), kept=kept_in(folder))
    (folder / "standing.json.new").mkdir()
    async with running(runner) as (bus, _):
        await bus.until(lambda: "raised again by the next run" in latest(bus).problem)
        assert sights(bus)[-1] is Sight.FULL
        (folder / "standing.json.new").rmdir()
        await bus.until(lambda: not latest(bus).problem)
    assert len(kept_in(folder).load()) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[",
        b"\xff",
        b"[" * 100_000,
        b'{"version":1,"vm":"web","codepack":"other","standing":[]}',
    ],
)
def test_a_damaged_file_of_what_stands_is_taken_for_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "standing.json").write_bytes(content)
    assert kept_in(tmp_path).load() == ()


def test_what_stands_in_another_machine_is_not_believed(tmp_path: Path) -> None:
    confirmed = Confirmed(finding("k"), 2, 1.0, 2.0)
    kept_in(tmp_path).save((confirmed,))
    assert kept_in(tmp_path).load() == (confirmed,)
    assert kept_in(tmp_path, vm="db").load() == ()


@asynchronous
async def test_more_alerts_than_anybody_reads_are_held_back_and_counted() -> None:
    inspect = Findings(*map(str, range(15)))
    async with running(runner_of(ScriptedPack(inspect), burst=10)) as (bus, _):
        await bus.until(lambda: "held back" in latest(bus).problem)
        looks = inspect.looks
        await until(lambda: inspect.looks >= looks + 5)
        assert len(alerts(bus)) == 10
        inspect.keys = ()
        await bus.until(lambda: bool(latest(bus).suppressed))
        last = latest(bus)
    assert (last.suppressed, last.problem) == (5, "")


@asynchronous
async def test_reasons_without_end_do_not_keep_a_status_from_being_told() -> None:
    left_out = [Unseen(what="w" * 10_000, reason="r" * 20_000)] * 40
    pack = ScriptedPack(lambda _, __: left_out)
    async with running(Runner(pack, FakeMachine(), vm="web")) as (bus, _):
        await until(lambda: latest(bus).sight is Sight.GAPS)
        (message,) = bus.of_kind("status")
        assert len(message.to_json()) < 32 * 1024
        assert latest(bus).gap_count == 40
