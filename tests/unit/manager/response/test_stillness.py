"""The pause of a run ends with its resume, with its time, and with whoever waits for it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from qvmi.errors import PauseError
from qvmi.manager.response.stillness import Stillness
from tests.asynchronous import asynchronous, until


class StandingMachine:
    """Notes when it stands still; it cannot be stopped where there is an error to raise."""

    def __init__(self, error: Exception | None = None) -> None:
        self.log: list[str] = []
        self.error = error

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        if self.error is not None:
            raise self.error
        self.log.append("stop")
        try:
            yield
        finally:
            self.log.append("cont")


@asynchronous
async def test_it_stands_still_until_it_is_ended() -> None:
    machine, late = StandingMachine(), list[float]()
    still = Stillness(machine, late.append)
    await still.begin(1000.0)
    assert (machine.log, still.is_held) == (["stop"], True)
    assert still.left_s is not None
    assert still.left_s <= 1000.0
    await still.end()
    assert (machine.log, still.is_held, late) == (["stop", "cont"], False, [])
    assert still.total_s > 0
    await still.end()
    assert machine.log == ["stop", "cont"]


@asynchronous
async def test_after_its_time_it_runs_and_that_is_told_with_for_how_long() -> None:
    machine, late = StandingMachine(), list[float]()
    still = Stillness(machine, late.append)
    await still.begin(0.01)
    await until(lambda: bool(late))
    assert machine.log == ["stop", "cont"]
    assert late[0] >= 0.01
    assert not still.is_held
    await still.end()
    await still.begin(1000.0)
    await still.end()
    assert machine.log == ["stop", "cont"] * 2
    assert still.total_s >= late[0]


@pytest.mark.parametrize("error", [PauseError("no guardian"), ZeroDivisionError("no guardian")])
@asynchronous
async def test_a_guest_that_cannot_be_stopped_is_not_taken_for_one_that_stands_still(
    error: Exception,
) -> None:
    still = Stillness(StandingMachine(error), lambda _: None)
    with pytest.raises(type(error), match="no guardian"):
        await still.begin(1.0)
    assert (still.is_held, still.total_s) == (False, 0.0)
    await still.end()


@asynchronous
async def test_whoever_is_cancelled_while_it_stops_leaves_it_running() -> None:
    machine = StandingMachine()
    still = Stillness(machine, lambda _: None)
    beginning = asyncio.create_task(still.begin(1000.0))
    await asyncio.sleep(0)
    beginning.cancel()
    await asyncio.wait({beginning})
    await still.end()
    assert machine.log in ([], ["stop", "cont"])
    assert not still.is_held
