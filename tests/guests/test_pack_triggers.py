"""Codepacks that look at a real guest because something happened in it, wherever they run."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from pathlib import Path

import pytest

import qvmi
from qvmi.bus.message import Message
from qvmi.codepacks.detectors.hidden_processes import HiddenProcesses
from qvmi.codepacks.manifest import Management
from qvmi.manager.isolation_watch import IsolationVerdict
from qvmi.manager.manager import manage
from qvmi.manager.pack_spec import PackSpec
from qvmi.manager.watch import watch
from qvmi.semantics.rows.events import EventKind
from tests.asynchronous import asynchronous
from tests.guests.lab import Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool
from tests.guests.rootkit import hide_process, show_process

NEVER_S = 80_000.0
WAIT_S = 100.0
MANAGED = Management(interval_s=NEVER_S, on_events=(EventKind.STARTED,))


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(GuestConfig("6.1"))


@asynccontextmanager
async def here(guest: Guest, state: Path) -> AsyncIterator[AsyncIterator[Message]]:
    pack = HiddenProcesses(NEVER_S)
    managed = {pack.name: MANAGED}
    async with (
        qvmi.attach(guest.qmp, cache=state / "cache") as machine,
        watch(machine, packs=[pack], vm="web", management=managed) as messages,
    ):
        yield messages


@asynccontextmanager
async def in_a_process(guest: Guest, state: Path) -> AsyncIterator[AsyncIterator[Message]]:
    async def proven() -> IsolationVerdict:
        return IsolationVerdict(proven=True)

    spec = PackSpec(
        "hidden-processes",
        "qvmi.codepacks.detectors.hidden_processes:HiddenProcesses",
        NEVER_S,
        triggers=MANAGED.triggers,
    )
    async with (
        qvmi.attach(guest.qmp, cache=state / "cache") as machine,
        manage(machine, [spec], vm="web", state=state, isolation=lambda _: proven) as messages,
    ):
        yield messages


@pytest.mark.parametrize("placed", [here, in_a_process])
@asynchronous
async def test_a_process_that_is_started_in_the_guest_makes_a_codepack_look(
    guest: Guest,
    state: Path,
    placed: Callable[[Guest, Path], AbstractAsyncContextManager[AsyncIterator[Message]]],
) -> None:
    """It looks once a day by itself; an alert takes two looks more than the first."""
    async with asyncio.timeout(WAIT_S), placed(guest, state) as messages:
        async for message in messages:
            if message.codepack == "hidden-processes":
                assert (message.kind, message.body["sight"]) == ("status", "full")
                break
        hidden = hide_process(guest, "httpd")
        waiting = asyncio.create_task(next_alert(messages))
        try:
            while not waiting.done():
                await asyncio.to_thread(guest.run, "/bin/true")
                await asyncio.wait({waiting}, timeout=0.2)
        finally:
            show_process(guest, hidden)
            waiting.cancel()
        alert = waiting.result()
    assert alert.body["finding"]["evidence"][0]["address"] == hidden.address  # type: ignore[index] # JSON


async def next_alert(messages: AsyncIterator[Message]) -> Message:
    async for message in messages:
        if message.kind == "alert":
            return message
    raise AssertionError("it ended without an alert")
