"""What the manager gives a codepack whose process ends before it is given."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from qvmi.manager.control_service import ControlService
from qvmi.policy import OBSERVE
from qvmi.testing import FakeMachine
from tests.asynchronous import asynchronous

if TYPE_CHECKING:
    from qvmi.machine.machine import Machine


class Slow(FakeMachine):
    """This is a machine that takes its time to stop, or to set a breakpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()
        self.may = asyncio.Event()
        self.held = 0

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[SimpleNamespace]:
        self.begun.set()
        await self.may.wait()
        self.held += 1
        try:
            yield SimpleNamespace(
                vcpus=(), paused_s=lambda: 0.0, provenance=SimpleNamespace(at=0.0)
            )
        finally:
            self.held -= 1

    def breakpoints(self, *_: object, **__: object) -> object:
        return self.paused()


@pytest.mark.parametrize(
    "question",
    [{"type": "pause"}, {"type": "breakpoint", "place": "here", "address": 4096}],
    ids=["pause", "breakpoint"],
)
@asynchronous
async def test_what_comes_after_the_end_of_a_process_is_given_to_nobody(
    question: dict[str, object],
) -> None:
    machine = Slow()
    control = ControlService(cast("Machine", machine), {"pack": OBSERVE})
    asked = asyncio.create_task(control.answer("pack", question))
    await machine.begun.wait()
    await control.forget("pack")
    machine.may.set()
    refusal = cast("dict[str, object]", (await asked)["refusal"])
    assert refusal["kind"] == "StaleView"
    assert machine.held == 0
