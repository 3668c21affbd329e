"""Typed events, and a stream that stays bounded and hides no loss."""

import asyncio
from collections.abc import Iterable

import pytest

from qvmi.errors import MachineGone
from qvmi.qmp.events import (
    RUN_STATE_EVENTS,
    Event,
    EventsLost,
    EventStream,
    GuestPanicked,
    Migration,
    OtherEvent,
    Powerdown,
    Reset,
    Resume,
    Shutdown,
    Stop,
    Suspend,
    Wakeup,
    decode_event,
)
from tests.asynchronous import asynchronous


def ordinary(number: int) -> Event:
    return OtherEvent(name="RTC_CHANGE", at=float(number), data={})


def reset(number: int) -> Event:
    return Reset(name="RESET", at=float(number))


def opened(events: Iterable[Event] = ()) -> EventStream:
    stream = EventStream(lambda _: None)
    for event in events:
        stream.put(event)
    return stream


# The names and members are those of qapi/run-state.json and qapi/migration.json.
@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("RESET", {"guest": True, "reason": "guest-reset"}, Reset),
        ("SHUTDOWN", {"guest": False, "reason": "host-signal"}, Shutdown),
        ("POWERDOWN", {}, Powerdown),
        ("STOP", {}, Stop),
        ("RESUME", {}, Resume),
        ("SUSPEND", {}, Suspend),
        ("WAKEUP", {}, Wakeup),
        ("GUEST_PANICKED", {"action": "pause", "info": {"type": "hyper-v"}}, GuestPanicked),
        ("MIGRATION", {"status": "completed"}, Migration),
    ],
)
def test_events_that_change_the_run_state_have_types(
    name: str, data: dict[str, object], expected: type[Event]
) -> None:
    event = decode_event(name, data, 5.0)
    assert type(event) is expected
    assert (event.name, event.at) == (name, 5.0)
    known = {field: data[field] for field in event.__struct_fields__ if field in data}
    assert all(getattr(event, field) == value for field, value in known.items())
    assert name in RUN_STATE_EVENTS


def test_other_events_keep_their_data() -> None:
    event = decode_event("DEVICE_DELETED", {"device": "net1"}, 5.0)
    assert event == OtherEvent(name="DEVICE_DELETED", at=5.0, data={"device": "net1"})


@asynchronous
async def test_events_come_in_the_order_they_happened() -> None:
    sent = [ordinary(1), reset(2), ordinary(3), ordinary(4), reset(5)]
    stream = opened(sent)
    assert [await anext(stream) for _ in sent] == sent


@asynchronous
async def test_a_storm_of_ordinary_events_costs_no_reset() -> None:
    stream = opened([reset(0), *(ordinary(n) for n in range(1, 100_001)), reset(100_001)])
    assert await anext(stream) == EventsLost(name="", at=0.0, ordinary=99_744, run_state=0)
    kept = [await anext(stream) for _ in range(258)]
    assert kept == [reset(0), *(ordinary(n) for n in range(99_745, 100_001)), reset(100_001)]


@asynchronous
async def test_lost_resets_are_told() -> None:
    stream = opened(reset(n) for n in range(1100))
    assert await anext(stream) == EventsLost(name="", at=76.0, ordinary=0, run_state=76)
    assert await anext(stream) == reset(76)


@asynchronous
async def test_a_loss_is_told_once() -> None:
    stream = opened(ordinary(n) for n in range(300))
    told = [await anext(stream) for _ in range(257)]
    assert sum(isinstance(event, EventsLost) for event in told) == 1


@asynchronous
async def test_a_waiting_consumer_is_woken() -> None:
    stream = opened()
    waiting = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    stream.put(reset(1))
    assert await waiting == reset(1)


@asynchronous
async def test_an_end_comes_behind_what_is_queued() -> None:
    stream = opened([reset(1)])
    stream.end(MachineGone("events"))
    assert await anext(stream) == reset(1)
    for _ in range(2):
        with pytest.raises(MachineGone):
            await anext(stream)


@asynchronous
async def test_a_closed_stream_just_ends_and_tells_its_owner_once() -> None:
    closed: list[EventStream] = []
    with EventStream(closed.append) as stream:
        stream.put(reset(1))
        stream.close()
    assert closed == [stream]
    assert [event async for event in stream] == [reset(1)]
