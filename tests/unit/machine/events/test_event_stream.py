"""Events wait for whoever is slow, up to a bound; and looking costs no more than its share."""

import asyncio
import threading

import pytest

from qvmi.addr import Va
from qvmi.errors import MachineGone
from qvmi.machine.events.event_stream import MAX_WAITING_EVENTS, EventAccount, EventStream
from qvmi.machine.events.event_thread import Pace
from qvmi.semantics.rows.events import GuestEvent, Missed, ModuleLoaded, What
from qvmi.semantics.rows.modules import Module
from qvmi.view import Provenance, Taken
from tests.asynchronous import asynchronous, until

LABEL = Provenance(Taken.LIVE, 2.0)
HOUR_S = 3600.0


def event(number: int) -> ModuleLoaded:
    return ModuleLoaded(1.0, LABEL, Module("m", Va(number), 1, "live", Va(number)))


async def taken(stream: EventStream) -> list[GuestEvent]:
    return [one async for one in stream]


@asynchronous
async def test_events_come_in_order_and_those_that_wait_come_before_the_end() -> None:
    stream = EventStream()
    stream.put([event(1), event(2)])
    stream.put([event(3)], EventAccount(looks=7))
    stream.end(None)
    assert await taken(stream) == [event(1), event(2), event(3)]
    assert stream.account == EventAccount(looks=7)


@asynchronous
async def test_the_oldest_are_dropped_and_the_stream_says_how_many() -> None:
    stream = EventStream()
    stream.put(event(number) for number in range(MAX_WAITING_EVENTS + 5))
    assert (stream.waiting, stream.dropped, stream.account.dropped) == (MAX_WAITING_EVENTS, 5, 5)
    first, second = await anext(stream), await anext(stream)
    assert first == Missed(1.0, LABEL, What.EVENTS, 5)
    assert second == event(5)
    stream.put(event(number) for number in range(3))
    assert await anext(stream) == Missed(1.0, LABEL, What.EVENTS, 2)


@asynchronous
async def test_what_comes_from_a_thread_wakes_the_reader() -> None:
    stream = EventStream()
    reading = asyncio.create_task(taken(stream))
    await asyncio.sleep(0)
    thread = threading.Thread(target=stream.put, args=([event(1)],))
    thread.start()
    thread.join()
    await until(lambda: not stream.waiting)
    stream.end(None)
    assert await reading == [event(1)]


@asynchronous
async def test_an_error_ends_the_stream_behind_what_waits() -> None:
    stream = EventStream()
    stream.put([event(1)])
    stream.end(MachineGone("a test"))
    stream.end(None)
    assert await anext(stream) == event(1)
    for _ in range(2):
        with pytest.raises(MachineGone):
            await anext(stream)


@pytest.mark.parametrize("cost_s", [0.000_05, 0.001, 0.02, 1.5])
def test_looks_use_at_most_a_tenth_of_a_core_whatever_each_costs(cost_s: float) -> None:
    now = cpu = 0.0
    pace = Pace(now, cpu)
    while now < HOUR_S / 10:
        now += cost_s
        cpu += cost_s
        now += pace.pause_s(now, cpu)
    assert cpu < now / 10


def test_cheap_looks_are_made_a_thousand_times_a_second() -> None:
    now = cpu = 0.0
    pace = Pace(now, cpu)
    for _ in range(1000):
        now, cpu = now + 0.000_05, cpu + 0.000_05
        assert pace.pause_s(now, cpu) == pytest.approx(0.001)
        now += 0.001
