"""Many codepacks over one machine, in one process."""

import asyncio
import threading
from collections.abc import Iterable

import pytest

from qvmi.codepacks.codepack import Finding
from qvmi.codepacks.fellows import Fellows, next_due
from qvmi.codepacks.runner import Runner
from qvmi.memory.physical import PhysicalMemory
from qvmi.semantics.guest_os import GuestOS
from qvmi.testing import FakeGuest, FakeMachine, fake_process
from tests.asynchronous import asynchronous, until
from tests.unit.codepacks.packs import ScriptedPack
from tests.unit.codepacks.recording_bus import RecordingBus

COUNT = 10


class Looks:
    """A codepack's function that counts its looks, and how many look at once."""

    here = 0
    most = 0

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, guest: GuestOS, _: PhysicalMemory) -> Iterable[Finding]:
        Looks.here += 1
        Looks.most = max(Looks.most, Looks.here)
        guest.processes()
        self.count += 1
        Looks.here -= 1
        return []


async def all_run(packs: list[ScriptedPack], machine: FakeMachine, fellows: Fellows) -> None:
    async with asyncio.TaskGroup() as group:
        for pack in packs:
            runner = Runner(pack, machine, vm="web", fellows=fellows)
            group.create_task(runner.run(RecordingBus()))


@pytest.fixture(autouse=True)
def _counters() -> None:
    Looks.here = Looks.most = 0


@asynchronous
async def test_those_of_one_round_look_one_after_the_other_and_share_what_they_see() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qvmi.codepacks.fellows.TURN_S", 1000.0)
        patch.setattr("qvmi.codepacks.shared_answers.SHARED_FOR_S", 1000.0)
        guest = FakeGuest(processes=[fake_process(1, name="init")])
        looks = [Looks() for _ in range(COUNT)]
        packs = [
            ScriptedPack(one, name=f"pack-{number}", interval_s=0.2)
            for number, one in enumerate(looks)
        ]
        running = asyncio.create_task(all_run(packs, FakeMachine(guest), Fellows()))
        await until(lambda: min(one.count for one in looks) >= 5, within_s=60.0)
        running.cancel()
        await asyncio.wait({running})
    assert Looks.most == 1
    assert len(guest.calls) <= sum(one.count for one in looks) / 2


@asynchronous
async def test_a_slow_one_is_waited_for_for_a_moment_and_not_until_its_end() -> None:
    leave = threading.Event()

    def slow(_: GuestOS, __: PhysicalMemory) -> Iterable[Finding]:
        leave.wait(60)
        return []

    quick = Looks()
    packs = [
        ScriptedPack(slow, name="slow", interval_s=0.01),
        ScriptedPack(quick, name="quick", interval_s=0.01),
    ]
    running = asyncio.create_task(all_run(packs, FakeMachine(), Fellows()))
    try:
        await until(lambda: quick.count >= 3)
    finally:
        leave.set()
        running.cancel()
        await asyncio.wait({running})


@asynchronous
async def test_a_turn_that_was_cancelled_is_given_to_the_next() -> None:
    turns = Fellows().turns
    begun = asyncio.Event()

    async def hold() -> None:
        async with turns.turn():
            begun.set()
            await asyncio.Event().wait()

    for _ in range(3):
        begun.clear()
        holding = asyncio.create_task(hold())
        await asyncio.wait_for(begun.wait(), 60)
        holding.cancel()
        await asyncio.wait({holding})
    async with asyncio.timeout(60), turns.turn():
        pass


@pytest.mark.parametrize(
    ("due", "now", "expected"),
    [
        (10.0, 10.0, 11.0),
        (10.0, 10.4, 11.0),
        (10.0, 11.0, 11.0),
        (10.0, 11.1, 12.0),
        (10.0, 13.5, 14.0),
    ],
)
def test_a_look_that_takes_too_long_leaves_out_those_it_missed(
    due: float, now: float, expected: float
) -> None:
    assert next_due(due, 1.0, now=now) == expected
