"""The queue between a bus and a reader."""

import asyncio

import pytest

from qvmi.bus.message import Message
from qvmi.bus.subscription import MAX_WAITING_MESSAGES, Subscription
from qvmi.bus.topic import Topic, TopicFilter
from qvmi.errors import BusError
from tests.asynchronous import asynchronous

TOPIC = Topic("web", "pack", "alert")


async def forgotten(_: Subscription) -> None:
    """The bus that these subscriptions belong to."""


def message(number: int = 0) -> Message:
    return Message(vm="web", codepack="pack", kind="alert", time=0.0, body={"number": number})


def subscription() -> Subscription:
    return Subscription(TopicFilter("web"), forget=forgotten)


@asynchronous
async def test_gives_what_arrived_in_order() -> None:
    reader = subscription()
    for number in range(3):
        reader.arrive(TOPIC, message(number).to_json())
    assert [(await anext(reader)).body["number"] for _ in range(3)] == [0, 1, 2]


@asynchronous
async def test_waits_for_what_arrives_later() -> None:
    reader = subscription()
    waiting = asyncio.create_task(anext(reader))
    await asyncio.sleep(0)
    sent = message()
    reader.arrive(TOPIC, sent.to_json())
    assert await waiting == sent


@asynchronous
async def test_holds_no_more_than_its_bound_and_counts_the_rest() -> None:
    reader = subscription()
    for number in range(MAX_WAITING_MESSAGES + 5):
        reader.arrive(TOPIC, message(number).to_json())
    await reader.close()
    assert reader.dropped == 5
    kept = [arrived.body["number"] async for arrived in reader]
    assert kept == list(range(MAX_WAITING_MESSAGES))


@asynchronous
async def test_counts_what_is_no_message_and_goes_on() -> None:
    reader = subscription()
    reader.arrive(TOPIC, b"{")
    reader.arrive(Topic("web", "other", "alert"), message().to_json())
    reader.arrive(TOPIC, message(7).to_json())
    assert (await anext(reader)).body["number"] == 7
    assert reader.refused == 2


@asynchronous
async def test_gives_what_had_arrived_before_it_says_that_the_bus_is_lost() -> None:
    reader = subscription()
    reader.arrive(TOPIC, message(1).to_json())
    reader.end(lost="it burned")
    assert (await anext(reader)).body["number"] == 1
    with pytest.raises(BusError, match="it burned"):
        await anext(reader)
    with pytest.raises(BusError, match="it burned"):
        await anext(reader)


@asynchronous
async def test_wakes_a_waiting_reader_when_it_ends() -> None:
    reader = subscription()
    waiting = asyncio.create_task(anext(reader))
    await asyncio.sleep(0)
    await reader.close()
    with pytest.raises(StopAsyncIteration):
        await waiting


@asynchronous
async def test_two_readers_share_what_arrives() -> None:
    reader = subscription()
    tasks = [asyncio.create_task(anext(reader)) for _ in range(2)]
    await asyncio.sleep(0)
    for number in range(2):
        reader.arrive(TOPIC, message(number).to_json())
    got = await asyncio.gather(*tasks)
    assert sorted(str(arrived.body["number"]) for arrived in got) == ["0", "1"]
