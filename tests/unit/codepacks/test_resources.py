"""Codepacks that are shown more than memory: fetched before a look, by a grant, and never silently none."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from qvmi.codepacks.alert import Alert
from qvmi.codepacks.codepack import Finding
from qvmi.codepacks.inspection import Inspection, inspect_guest
from qvmi.codepacks.look import look
from qvmi.codepacks.looker import Looker
from qvmi.codepacks.manifest import built_in_manifest
from qvmi.codepacks.observed_guest import ObservedGuest
from qvmi.codepacks.resource_fetch import ResourceFetch, ResourceMachine
from qvmi.codepacks.resources import (
    MAX_FLOWS_S,
    NO_RESOURCES,
    Resources,
    Wanted,
    equipped,
    wanted_of,
)
from qvmi.codepacks.runner import Runner
from qvmi.codepacks.status import Sight, Status
from qvmi.errors import (
    CodepackError,
    CodepackRefused,
    CorruptCapture,
    MachineGone,
    PolicyDenied,
    QvmiError,
    StaleView,
    UsageError,
)
from qvmi.machine.devices.flow_watch import Flow
from qvmi.machine.machine import Machine
from qvmi.manager.pack_spec import PackSpec
from qvmi.manager.packs_here import PacksHere
from qvmi.manager.timed_pack import TimedPack
from qvmi.memory.physical import PhysicalMemory
from qvmi.policy import READ_ONLY, Grant, Limits, Policies, Policy
from qvmi.remote.remote_machine import RemoteMachine
from qvmi.semantics.guest_os import Gap, GuestOS, Listing
from qvmi.testing import (
    FakeGuest,
    FakeMachine,
    FakeMemory,
    fake_disk_difference,
    fake_flow,
    fake_resources,
    load_pack,
    looks,
)
from tests.asynchronous import asynchronous
from tests.unit.codepacks.packs import finding
from tests.unit.codepacks.recording_bus import RecordingBus
from tests.unit.codepacks.signed_packs import MANIFEST, pack_folder

MAY = READ_ONLY.plus(Grant.DISK, Grant.NETWORK_CAPTURE)
BOTH = Wanted(disk_differences=True, flows_s=1.0)


@dataclass
class Shown:
    """A codepack that finds the path of each difference and the far end of each flow."""

    wanted: Wanted = BOTH
    name: str = "shown"
    interval_s: float = 0.001
    grants: frozenset[Grant] = MAY.grants
    looks: int = 0
    seen: list[str] = field(default_factory=list)

    def inspect(
        self, guest: GuestOS, _: PhysicalMemory, resources: Resources = NO_RESOURCES
    ) -> Iterable[Finding]:
        self.looks += 1
        guest.processes()
        paths = [row.path for row in resources.disk_differences]
        return [finding(key) for key in (*paths, *(row.remote for row in resources.flows))]


def resources(*, gaps: Iterable[Gap] = ()) -> Resources:
    return fake_resources(
        disk_differences=[fake_disk_difference("/bin/su")], flows=[fake_flow("far:1")], gaps=gaps
    )


class Fickle(Shown):
    """One that says after its first look that it wants what is nothing."""

    def inspect(
        self, guest: GuestOS, memory: PhysicalMemory, resources: Resources = NO_RESOURCES
    ) -> Iterable[Finding]:
        found = super().inspect(guest, memory, resources)
        self.wanted = ["flows"]  # type: ignore[assignment] # what a codepack without types does
        return found


async def inspected(machine: object, policy: Policy = MAY, pack: Shown | None = None) -> Inspection:
    return await inspect_guest(pack or Shown(), machine, rounds=2, policy=policy)  # type: ignore[arg-type]  # also what is none


@pytest.mark.parametrize("direct", [True, False])
@asynchronous
async def test_what_is_shown_is_found_and_confirmed_by_a_second_fetch(*, direct: bool) -> None:
    machine = FakeMachine(resources=resources(), direct=direct)
    inspection = await inspected(machine)
    assert [one.finding.key for one in inspection.confirmed] == ["/bin/su", "far:1"]
    assert [call for call in machine.calls if call in {"disk_differences", "flows"}] == [
        "disk_differences",
        "flows",
    ] * 2
    assert inspection.saw_all


@asynchronous
async def test_a_codepack_that_wants_something_else_later_is_shown_what_it_wanted_at_first() -> (
    None
):
    inspection = await inspected(FakeMachine(resources=resources()), pack=Fickle())
    assert inspection.saw_all
    assert [one.finding.key for one in inspection.confirmed] == ["/bin/su", "far:1"]


@asynchronous
async def test_gaps_in_what_was_fetched_are_gaps_of_the_look() -> None:
    gap = Gap("capture", None, "it is full")
    inspection = await inspected(FakeMachine(resources=resources(gaps=[gap])))
    assert inspection.last.sight is Sight.GAPS
    assert gap in inspection.last.gaps


@pytest.mark.parametrize(
    "error",
    [
        PolicyDenied("capture", "network-capture"),
        CorruptCapture("it does not begin as a capture"),
        StaleView("the machine was reset"),
        UsageError("which netdev?"),
    ],
)
@pytest.mark.parametrize("member", ["disk_differences", "flows"])
@asynchronous
async def test_what_could_not_be_fetched_makes_the_look_blind_and_says_why(
    member: str, error: QvmiError
) -> None:
    machine, pack = FakeMachine(resources=resources()), Shown()
    for _ in range(2):
        machine.fail_next(member, error)
    inspection = await inspected(machine, pack=pack)
    assert (inspection.last.sight, inspection.last.problem) == (Sight.BLIND, str(error))
    assert (inspection.found_anything, pack.looks) == (False, 0)


@asynchronous
async def test_without_the_grant_nothing_is_fetched_and_the_audit_log_tells(
    caplog: pytest.LogCaptureFixture,
) -> None:
    machine = FakeMachine(resources=resources())
    inspection = await inspected(machine, READ_ONLY.plus(Grant.DISK))
    assert inspection.last.sight is Sight.BLIND
    assert "needs grant 'network-capture'" in inspection.last.problem
    assert "flows" not in machine.calls
    refusals = [one for one in caplog.messages if one.startswith("refused: codepack shown:")]
    assert len(refusals) == 2


@asynchronous
async def test_a_rate_holds_for_what_is_fetched() -> None:
    machine = FakeMachine(resources=resources())
    seldom = MAY.within(Grant.DISK, Limits(per_second=0.0001))
    inspection = await inspected(machine, seldom)
    assert "more than 0.0001 times a second" in inspection.last.problem
    assert machine.calls.count("disk_differences") == 1


@pytest.mark.parametrize("grant", [Grant.DISK, Grant.NETWORK_CAPTURE])
def test_a_limit_that_nobody_counts_is_refused_before_anything_runs(grant: Grant) -> None:
    policies = Policies(MAY.within(grant, Limits(bytes_per_second=1e6)))
    here = PacksHere(FakeMachine(), vm="web", policies=policies, management={}, state=None)
    with pytest.raises(PolicyDenied, match="nobody counts the bytes"):
        here.runners([Shown()])


@asynchronous
async def test_what_the_machine_lacks_is_told_and_is_not_nothing_found() -> None:
    lacking = {Grant.NETWORK_CAPTURE: "this machine has no network card"}
    inspection = await inspected(FakeMachine(resources=resources(), lacking=lacking))
    assert (inspection.last.sight, inspection.last.problem) == (
        Sight.BLIND,
        "this machine has no network card",
    )


class MemoryAlone:
    """A machine that shows nothing else, as one that is seen from another process."""

    def __init__(self) -> None:
        self._machine = FakeMachine()

    guest = property(lambda self: self._machine.guest)
    memory = property(lambda self: self._machine.memory)
    epoch = 0

    async def run_state(self) -> str:
        return "running"

    async def refresh(self) -> None:
        """Nothing new."""


@asynchronous
async def test_a_machine_that_shows_memory_alone_is_refused_with_the_way_out() -> None:
    inspection = await inspected(MemoryAlone())
    assert inspection.last.sight is Sight.BLIND
    assert "leave out --placement process" in inspection.last.problem
    here = PacksHere(
        MemoryAlone(),  # type: ignore[arg-type]  # less than a machine
        vm="web",
        policies=Policies(MAY),
        management={},
        state=None,
    )
    with pytest.raises(CodepackRefused, match="leave out --placement process"):
        here.runners([Shown()])


def test_a_live_machine_shows_more_than_memory_and_one_seen_from_elsewhere_does_not() -> None:
    needed = {name for name in vars(ResourceMachine) if not name.startswith("_")}
    assert needed <= set(dir(Machine))
    assert not needed & set(dir(RemoteMachine))


class Slow(FakeMachine):
    """A machine whose flows are watched for ever."""

    async def flows(
        self, seconds: float, *, netdev: str | None = None, least_looks: int = 1
    ) -> Listing[Flow]:
        del seconds, netdev, least_looks
        self.calls.append("flows")
        try:
            await asyncio.Event().wait()
        finally:
            self.calls.append("ended")
        raise AssertionError


@asynchronous
async def test_a_fetch_that_takes_too_long_is_late_and_is_ended() -> None:
    machine, pack = Slow(), Shown()
    looker = Looker(pack, machine, deadline_s=0.05, policy=MAY)
    result = await looker.look()
    assert (result.sight, result.problem) == (Sight.LATE, "not finished after 0.05 s")
    assert machine.calls[-2:] == ["flows", "ended"]
    assert pack.looks == 0


@asynchronous
async def test_a_fetch_is_ended_with_whoever_runs_it() -> None:
    machine = Slow()
    running = asyncio.create_task(Looker(Shown(), machine, policy=MAY).look())
    while "flows" not in machine.calls:  # noqa: ASYNC110 - a fake tells nobody
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled()
    assert machine.calls[-1] == "ended"


@asynchronous
async def test_a_machine_that_is_gone_while_something_is_fetched_ends_the_watch() -> None:
    machine = FakeMachine(resources=resources())
    machine.fail_next("flows", MachineGone("flows"))
    machine.fail_next("refresh", MachineGone("refresh"))
    with pytest.raises(MachineGone):
        await inspected(machine)


@asynchronous
async def test_a_watch_publishes_what_is_found_and_waits_for_its_turn_only_behind_the_fetch() -> (
    None
):
    bus = RecordingBus()
    runner = Runner(Shown(), FakeMachine(resources=resources()), vm="web", policy=MAY)
    task = asyncio.create_task(runner.run(bus))
    try:
        await bus.until(lambda: len(bus.of_kind("alert")) == 2)
    finally:
        task.cancel()
        await asyncio.wait({task})
    alerts = [message.read_body(Alert) for message in bus.of_kind("alert")]
    assert {alert.finding.key for alert in alerts} == {"/bin/su", "far:1"}
    assert bus.of_kind("status")[0].read_body(Status).sight is Sight.FULL


def test_a_codepack_that_is_given_nothing_is_told_so() -> None:
    with pytest.raises(UsageError, match="was not shown the differences"):
        list(Shown().inspect(FakeGuest(), FakeMemory({})))
    with pytest.raises(UsageError, match="was not shown flows"):
        _ = Resources(disk_differences=resources().disk_differences).flows


def test_in_a_process_of_its_own_it_is_refused_and_could_not_be_silent() -> None:
    for name in ("disk-differences", "flows-without-owner"):
        with pytest.raises(CodepackRefused, match="leave out --placement process"):
            PackSpec.of_manifest(built_in_manifest(name), MAY)
    guest = ObservedGuest(FakeGuest(), "shown")
    result = look(TimedPack(Shown(), 5.0), guest, FakeMemory({}))
    assert result.sight is Sight.FAILED
    assert "was not shown the differences" in result.problem


def test_for_one_look_it_is_what_it_was() -> None:
    pack = Shown()
    shown = equipped(pack, resources())
    guest = ObservedGuest(FakeGuest(), pack.name)
    assert (shown.name, shown.interval_s, shown.grants) == (pack.name, 0.001, pack.grants)
    found = shown.inspect(guest, FakeMemory({}))
    assert [getattr(one, "key", "") for one in found] == ["/bin/su", "far:1"]


FOREIGN = """
from qvmi.codepacks.codepack import Finding, Observation, Severity
from qvmi.codepacks.resources import NO_RESOURCES, Wanted
from qvmi.policy import Grant


class WatchInit:
    name = "watch-init"
    grants = frozenset({Grant.READ_MEMORY, Grant.DISK})
    wanted = Wanted(disk_differences=True)

    def __init__(self, *, interval_s, pid):
        self.interval_s = interval_s

    def inspect(self, guest, memory, resources=NO_RESOURCES):
        for row in resources.disk_differences:
            seen = (Observation(view="disk", present=True),)
            yield Finding(
                claim=row.path, severity=Severity.LOW, technique="T1565", key=row.path, evidence=seen
            )
"""


def test_a_codepack_of_somebody_elses_is_shown_what_its_manifest_grants(tmp_path: Path) -> None:
    manifest = MANIFEST.replace('"read-memory"', '"read-memory", "disk"')
    pack = load_pack(
        pack_folder(tmp_path / "pack", manifest=manifest, code=FOREIGN), interval_s=0.01
    )
    (found,) = looks(pack, FakeGuest(), resources=resources()).confirmed
    assert found.finding.claim == "/bin/su"
    with pytest.raises(CodepackRefused, match="asks for more than its manifest: disk"):
        load_pack(pack_folder(tmp_path / "other", code=FOREIGN))


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), MAX_FLOWS_S + 1])
def test_flows_are_watched_for_a_time_that_there_is(seconds: float) -> None:
    with pytest.raises(UsageError, match="flows_s"):
        Wanted(flows_s=seconds)


def test_what_is_wanted_is_as_much_as_is_asked_for() -> None:
    assert wanted_of(Shown()) == BOTH
    assert wanted_of(object()) == Wanted()
    with pytest.raises(CodepackError, match="does not ask for: network-capture"):
        ResourceFetch(Shown(grants=frozenset({Grant.DISK})), FakeMachine(), MAY)
    with pytest.raises(CodepackError, match="what it wants is a list"):
        wanted_of(Shown(wanted=["flows"]))  # type: ignore[arg-type]  # as foreign code might
