"""Hidden processes, in real guests: hidden from outside in the RAM file, found on the live guest."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from pathlib import Path

import pytest

import qvmi
from qvmi.bus.message import Message
from qvmi.codepacks.alert import Alert
from qvmi.codepacks.detectors.hidden_processes import HiddenProcesses
from qvmi.codepacks.status import Sight, Status
from qvmi.errors import MachineGone
from qvmi.manager.watch import Watch, watch
from qvmi.semantics.guest_os import Process
from tests.asynchronous import asynchronous
from tests.guests.lab import Guest, GuestConfig, Lab
from tests.guests.rootkit import bypassed_process, forgotten_process, hide_process, show_process
from tests.proofs import proof_size

INTERVAL_S = 0.05
WAIT_S = 60.0
"""Longest wait for an alert; it takes two looks, on a loaded machine a second."""
SETTLED_S = 4.5
"""A moment of change is over by then; the codepack waits for 5 s on a clock that is never set."""
STORMS = (True, False)[: proof_size(ci=1, full=2)]
"""Whether processes come and go meanwhile, which is the harder case."""


@asynccontextmanager
async def watching(
    guest: Guest, profiles: Path, pack: HiddenProcesses | None = None
) -> AsyncIterator[Watch]:
    pack = pack or HiddenProcesses(INTERVAL_S)
    async with (
        qvmi.attach(guest.qmp, cache=profiles) as machine,
        watch(machine, packs=[pack], vm="guest") as documents,
    ):
        yield documents


@contextmanager
def hidden(guest: Guest, name: str) -> Iterator[Process]:
    process = hide_process(guest, name)
    try:
        yield process
    finally:
        show_process(guest, process)


async def next_of_kind(documents: Watch, kind: str) -> Message:
    async with asyncio.timeout(WAIT_S):
        async for message in documents:
            if message.kind == kind:
                return message
    raise AssertionError(f"the watch ended without {kind}")


async def first_sight(documents: Watch) -> None:
    """Waits until it sees everything; on a loaded host its first look may be late."""
    async with asyncio.timeout(WAIT_S):
        async for message in documents:
            assert message.kind == "status", message.body
            if message.read_body(Status).sight is Sight.FULL:
                return


@contextmanager
def storming(guest: Guest) -> Iterator[None]:
    guest.start_storm()
    try:
        yield
    finally:
        guest.stop_storm()


def pids_that_the_guest_sees(guest: Guest) -> set[int]:
    return {task.pid for task in guest.truth().processes}


@asynchronous
async def test_an_unlinked_task_raises_an_alert_over_mqtt(guest: Guest, profiles: Path) -> None:
    async with watching(guest, profiles) as documents:
        await first_sight(documents)
        with hidden(guest, "httpd") as process:
            message = await next_of_kind(documents, "alert")
            assert process.pid in pids_that_the_guest_sees(guest)
    assert message.topic.text == "qvmi/v1/guest/hidden-processes/alert"
    alert = message.read_body(Alert)
    assert (alert.finding.technique, alert.rounds) == ("T1014", 2)
    shown, *others, absent = alert.finding.evidence
    assert (shown.view, shown.present, shown.address) == ("init_pid_ns.idr", True, process.address)
    assert (shown.facts["pid"], shown.facts["name"]) == (process.pid, "httpd")
    assert (absent.view, absent.present) == ("init_task.tasks", False)
    assert {one.view for one in others} >= {
        "task_struct.children",
        "signal_struct.thread_head",
        "slab of task_struct",
    }
    assert {one.address for one in others} == {process.address}


@asynchronous
async def test_the_alert_is_cleared_when_the_task_is_linked_again(
    guest: Guest, profiles: Path
) -> None:
    async with watching(guest, profiles) as documents:
        with hidden(guest, "httpd"):
            raised = (await next_of_kind(documents, "alert")).read_body(Alert)
        cleared = (await next_of_kind(documents, "cleared")).read_body(Alert)
    assert cleared.evidence_hash == raised.evidence_hash


@asynchronous
async def test_a_task_that_its_pid_does_not_lead_to_raises_an_alert(
    guest: Guest, profiles: Path
) -> None:
    async with watching(guest, profiles) as documents:
        await first_sight(documents)
        with forgotten_process(guest, "nobody") as process:
            alert = (await next_of_kind(documents, "alert")).read_body(Alert)
            assert process.pid not in pids_that_the_guest_sees(guest)
        await next_of_kind(documents, "cleared")
    assert "is in init_task.tasks but not in init_pid_ns.idr" in alert.finding.claim
    assert alert.finding.evidence[0].address == process.address


@pytest.mark.parametrize("storm", STORMS, ids=lambda storm: "in-a-storm" if storm else "at-rest")
@asynchronous
async def test_a_task_behind_a_gap_that_stays_raises_an_alert_and_so_does_the_gap(
    guest: Guest,
    profiles: Path,
    *,
    storm: bool,
) -> None:
    async with watching(guest, profiles) as documents:
        await first_sight(documents)
        with storming(guest) if storm else nullcontext():
            with bypassed_process(guest, "orphan") as process:
                alerts = [
                    (await next_of_kind(documents, "alert")).read_body(Alert) for _ in range(2)
                ]
            cleared = {
                (await next_of_kind(documents, "cleared")).read_body(Alert).evidence_hash
                for _ in range(2)
            }
    missing, gap = (alert.finding for alert in alerts)
    assert (missing.severity, gap.severity) == ("high", "medium")
    assert missing.evidence[0].address == process.address
    assert "not in init_task.tasks, which cannot be walked whole" in missing.claim
    assert "init_task.tasks cannot be walked past 0x" in gap.claim
    assert all(alert.last_seen - alert.first_seen > SETTLED_S for alert in alerts)
    assert cleared == {alert.evidence_hash for alert in alerts}


@asynchronous
async def test_a_task_that_is_hidden_in_a_fork_storm_is_found(guest: Guest, profiles: Path) -> None:
    with storming(guest):
        async with watching(guest, profiles) as documents:
            with hidden(guest, "httpd") as process:
                alert = (await next_of_kind(documents, "alert")).read_body(Alert)
    assert alert.finding.evidence[0].address == process.address


@asynchronous
async def test_a_name_with_escapes_and_markup_travels_whole(guest: Guest, profiles: Path) -> None:
    hostile = next(
        task.name for task in guest.truth().processes if task.name.startswith(b"\x1b")
    ).decode("utf-8", "backslashreplace")
    async with watching(guest, profiles) as documents:
        with hidden(guest, hostile):
            message = await next_of_kind(documents, "alert")
    assert message.read_body(Alert).finding.evidence[0].facts["name"] == hostile
    assert b"\x1b" not in message.to_json()


@asynchronous
async def test_the_watch_ends_when_qemu_is_killed(lab: Lab, profiles: Path) -> None:
    with lab.restore(GuestConfig()) as guest:
        async with watching(guest, profiles) as documents:
            await first_sight(documents)
            guest.kill()
            status = (await next_of_kind(documents, "status")).read_body(Status)
            assert status.sight is Sight.ENDED
            try:
                await next_of_kind(documents, "never")
            except MachineGone:
                return
    raise AssertionError("the watch went on")
