"""Codepacks as processes of their own under the manager: what they see, what they may, what is left."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

import qvmi
from qvmi.bus.message import Message
from qvmi.codepacks.alert import Alert
from qvmi.manager.isolation_watch import NOT_PROVEN, IsolationVerdict
from qvmi.manager.manager import Manager, manage
from qvmi.manager.pack_spec import PackSpec
from tests.asynchronous import asynchronous
from tests.guests.lab import Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool
from tests.guests.rootkit import hide_process, show_process

WAIT_S = 100.0
HIDDEN = PackSpec("hidden-processes", "qvmi.codepacks.hidden_processes:HiddenProcesses", 0.05)


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(GuestConfig("6.1"))


@pytest.fixture
def state() -> Iterator[Path]:
    """This is a folder that other users' processes can reach, as those below pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="qvmi-manager5-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


@asynccontextmanager
async def managing(
    guest: Guest, state: Path, *packs: PackSpec, proven: bool = False, allowed: bool = True
) -> AsyncIterator[Manager]:
    async def check() -> IsolationVerdict:
        return IsolationVerdict(proven=proven, why="" if proven else "this test proves nothing")

    async with (
        qvmi.attach(guest.qmp, cache=state / "cache") as machine,
        manage(
            machine,
            packs or [HIDDEN],
            vm="web",
            state=state,
            isolation=lambda _: check,
            allow_unproven=allowed,
        ) as manager,
    ):
        yield manager


async def next_of_kind(manager: Manager, kind: str, codepack: str | None = None) -> Message:
    async with asyncio.timeout(WAIT_S):
        async for message in manager:
            if message.kind == kind and codepack in (None, message.codepack):
                return message
    raise AssertionError(f"the manager ended without {kind}")


@asynchronous
async def test_a_hidden_process_is_found_by_a_codepack_in_a_process_of_its_own(
    guest: Guest, state: Path
) -> None:
    async with managing(guest, state) as manager:
        status = await next_of_kind(manager, "status", "hidden-processes")
        assert status.body["sight"] == "full"
        (process,) = manager.fleet.running.values()
        assert process.pid != os.getpid()
        hidden = hide_process(guest, "httpd")
        try:
            message = await next_of_kind(manager, "alert")
        finally:
            show_process(guest, hidden)
        cleared = await next_of_kind(manager, "cleared")
    assert message.topic.text == "qvmi/v1/web/hidden-processes/alert"
    alert = message.read_body(Alert)
    assert alert.finding.evidence[0].address == hidden.address
    assert alert.caveats == (NOT_PROVEN,)
    assert cleared.read_body(Alert).evidence_hash == alert.evidence_hash
    assert guest.monitor.running()
