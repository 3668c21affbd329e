"""Services in processes of their own: they ask others, and are ended where they do not behave."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

import qvmi
from qvmi.bus.message import Message
from qvmi.codepacks.triggers import Triggers
from qvmi.manager.isolation_watch import IsolationVerdict
from qvmi.manager.manager import Manager, manage
from qvmi.manager.pack_spec import PackSpec
from tests.asynchronous import asynchronous, until
from tests.guests.lab import Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool
from tests.guests.rootkit import hide_process, show_process

WAIT_S = 100.0
SLEEPER = "sleep 1000 >/dev/null 2>&1 & echo $!"
HIDDEN = PackSpec(
    "hidden-processes",
    "qvmi.codepacks.detectors.hidden_processes:HiddenProcesses",
    0.05,
    triggers=Triggers(answers=True),
)


def service(name: str, kind: str, *, look_s: float = 5.0) -> PackSpec:
    return PackSpec(name, f"tests.guests.living_packs:{kind}", look_s=look_s, is_service=True)


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(GuestConfig("6.1"))


@asynccontextmanager
async def managing(guest: Guest, state: Path, *packs: PackSpec) -> AsyncIterator[Manager]:
    async def proven() -> IsolationVerdict:
        return IsolationVerdict(proven=True)

    async with (
        asyncio.timeout(WAIT_S),
        qvmi.attach(guest.qmp, cache=state / "cache") as machine,
        manage(machine, packs, vm="web", state=state, isolation=lambda _: proven) as manager,
    ):
        yield manager


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def next_of(manager: Manager, codepack: str, kind: str, words: str = "") -> Message:
    async for message in manager:
        fits = (message.codepack, message.kind) == (codepack, kind)
        if fits and words in str(message.body.get("problem", "")):
            return message
    raise AssertionError(f"the manager ended without {kind} of {codepack}")


@asynchronous
async def test_a_service_asks_another_codepack_and_raises_an_alert_that_both_stand_for(
    guest: Guest, state: Path
) -> None:
    hidden = hide_process(guest, "httpd")
    try:
        async with managing(guest, state, HIDDEN, service("asking", "Asking")) as manager:
            alert = await next_of(manager, "asking", "alert")
    finally:
        show_process(guest, hidden)
    finding = alert.body["finding"]
    assert isinstance(finding, dict)
    assert finding["claim"].startswith(f"two agree: process {hidden.pid} (httpd)")
    assert finding["evidence"][0]["address"] == hidden.address
    assert alert.topic.text == "qvmi/v1/web/asking/alert"


@asynchronous
async def test_a_service_in_a_process_of_its_own_is_told_what_happens_in_the_guest(
    guest: Guest, state: Path
) -> None:
    pids: list[int] = []
    told = asyncio.Event()

    async def start_sleepers() -> None:
        """This starts one after the other, as nobody knows when the service begins to watch."""
        while not told.is_set():
            pids.append(int(await asyncio.to_thread(guest.run, SLEEPER)))

    async with managing(guest, state, service("following", "Following")) as manager:
        starting = asyncio.create_task(start_sleepers())
        try:
            alert = await next_of(manager, "following", "alert")
        finally:
            told.set()
            await starting
    guest.run(f"kill {' '.join(map(str, pids))}")
    finding = alert.body["finding"]
    assert isinstance(finding, dict)
    assert finding["claim"] in {f"process {pid} sleeps" for pid in pids}


@asynchronous
async def test_a_service_that_never_gives_its_event_loop_back_is_ended_and_started_again(
    guest: Guest, state: Path
) -> None:
    async with managing(guest, state, service("blocking", "Blocking", look_s=0.5)) as manager:
        await until(lambda: bool(manager.fleet.running), within_s=WAIT_S)
        first = manager.fleet.running["blocking"].pid
        told = await next_of(manager, "manager", "status", "did not finish in time")
        assert "codepack blocking" in str(told.body["problem"])
        await until(
            lambda: (
                manager.fleet.running.get("blocking", None) is not None
                and manager.fleet.running["blocking"].pid != first
            ),
            within_s=WAIT_S,
        )
        assert guest.monitor.running()


@asynchronous
async def test_a_service_that_swallows_its_cancellation_ends_with_its_manager(
    guest: Guest, state: Path
) -> None:
    async with managing(guest, state, service("staying", "Staying")) as manager:
        await next_of(manager, "staying", "status")
        pid = manager.fleet.running["staying"].pid
        assert is_there(pid)
    assert not is_there(pid)
