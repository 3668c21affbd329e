"""The manager's end of the bus, and codepacks that ask it what has no short answer."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, cast

import pytest

from qvmi.arch.x86_64 import Registers
from qvmi.audit import LOGGER
from qvmi.bus.bus import Bus
from qvmi.bus.local import in_process
from qvmi.bus.message import MAX_MESSAGE_BYTES
from qvmi.bus.topic import Topic
from qvmi.manager.accounts import MANAGER, pack_account
from qvmi.manager.bus_service import BusService
from qvmi.manager.control_service import ControlService
from qvmi.policy import READ_ONLY
from qvmi.testing import FakeMachine
from tests.asynchronous import asynchronous
from tests.synthetic.registers import vcpu

if TYPE_CHECKING:
    from qvmi.machine.machine import Machine

VM: Final = "vm"
LONG: Final = "\x80" * (MAX_MESSAGE_BYTES // 3)
"""Two bytes a letter in a request, and more than one message where it is told by its number."""
MANY: Final = 256
"""vCPUs whose registers are more than one message."""
WAIT_S: Final = 30.0


class Large(FakeMachine):
    """This is a machine of many vCPUs that tells its run state once it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.told = asyncio.Event()

    async def registers(self) -> tuple[Registers, ...]:
        return tuple(vcpu(index=index) for index in range(MANY))

    async def run_state(self) -> str:
        self.asked.set()
        await self.told.wait()
        return "running"


@asynccontextmanager
async def serving(machine: Large) -> AsyncIterator[dict[str, Bus]]:
    """A manager answers two codepacks; gives their ends of the bus."""
    policies = {"loud": READ_ONLY, "quiet": READ_ONLY}
    service = BusService(ControlService(cast("Machine", machine), policies), vm=VM)
    packs = {name: pack_account(VM, name, policy) for name, policy in policies.items()}
    async with in_process([service.account, *packs.values()]) as channel:
        buses = {name: await channel.connect(account) for name, account in packs.items()}
        running = asyncio.create_task(service.run(channel))
        while not channel.subscriptions():  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0)
        try:
            yield dict(buses)
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running


async def asked(bus: Bus, codepack: str, question: dict[str, object]) -> dict[str, object]:
    topic = Topic.of_request(VM, codepack, MANAGER)
    return (await bus.request(topic, question, deadline_s=WAIT_S)).body


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ({"type": "breakpoint", "place": LONG, "address": 0}, "BadMessage"),
        ({"type": "breakpoint", "place": LONG[:256], "address": 0}, "PolicyDenied"),
        ({"type": LONG}, "BadMessage"),
        ({"type": "registers"}, "BadMessage"),
    ],
    ids=["a long place", "a place", "a long kind", "many registers"],
)
@asynchronous
async def test_what_has_no_short_answer_is_refused_and_nobody_elses_question_is_lost(
    question: dict[str, object], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    machine = Large()
    async with serving(machine) as buses:
        others = asyncio.create_task(asked(buses["quiet"], "quiet", {"type": "run-state"}))
        await machine.asked.wait()
        answer = await asked(buses["loud"], "loud", question)
        assert cast("dict[str, object]", answer["refusal"])["kind"] == kind
        machine.told.set()
        assert (await others)["told"] == {"state": "running"}
    assert all(len(line) < MAX_MESSAGE_BYTES // 8 for line in caplog.messages)
