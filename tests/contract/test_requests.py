"""How every bus carries requests and replies: the one within a process and the one over MQTT."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest

from qvmi.bus.account import Account
from qvmi.bus.broker import mosquitto
from qvmi.bus.bus import Bus, OpenChannel
from qvmi.bus.local import in_process
from qvmi.bus.message import Message
from qvmi.bus.requests import MAX_DEADLINE_S, MAX_PENDING_REQUESTS, Request, Requests
from qvmi.bus.topic import ANY, REPLY, REQUEST, Topic, TopicFilter
from qvmi.errors import BadMessage, BusError, BusRefused, RequestTimeout, UsageError
from tests.asynchronous import asynchronous, until

ASKER = Account.of_codepack("web", "asker", services=["clock", "idle"])
OTHER = Account.of_codepack("web", "other", services=["clock"])
CLOCK = Account.of_service("web", "clock")
IDLE = Account.of_service("web", "idle")
READER = Account.of_reader("reader", TopicFilter("web"))
ACCOUNTS: Sequence[Account] = (ASKER, OTHER, CLOCK, IDLE, READER)

TO_CLOCK = Topic.of_request("web", "asker", "clock")
LONG_S = 60.0
"""A deadline that no machine misses."""

every_bus = pytest.mark.parametrize(
    "channel_of", [pytest.param(in_process, id="local"), pytest.param(mosquitto, id="mqtt")]
)


def request(
    topic: Topic = TO_CLOCK, *, deadline_s: float = LONG_S, name: str | None = None
) -> Message:
    """Makes a request as one makes it who does not wait for its answer."""
    made = Message(
        vm=topic.vm,
        codepack=topic.codepack,
        kind=topic.kind,
        peer=topic.peer,
        time=time.time(),
        deadline=time.time() + deadline_s,
        body={"who": topic.codepack},
    )
    return made if name is None else msgspec.structs.replace(made, id=name)


async def short_lived(asker: Bus, requests: Requests) -> Request:
    """Asks with a deadline that is soon over, but not before the request has come."""
    deadline_s = 0.1
    while True:
        soon = request(deadline_s=deadline_s)
        for one in (soon, request()):
            await asker.publish(one)
        if (taken := await anext(requests)).message == soon:
            return taken
        deadline_s *= 2


async def answer(requests: Requests) -> None:
    """Answers every request with what it asked, and who it was."""
    async for one in requests:
        who = f"{one.message.vm}.{one.message.codepack}"
        await one.reply({"asked": dict(one.body), "by": who})


@asynccontextmanager
async def answering(bus: Bus) -> AsyncIterator[Requests]:
    """Runs a clock that answers, until the block ends."""
    requests = await bus.serve("clock", vm="web")
    serving = asyncio.create_task(answer(requests))
    try:
        yield requests
    finally:
        serving.cancel()
        await asyncio.wait({serving})


@every_bus
@asynchronous
async def test_each_of_many_requests_at_once_gets_its_own_answer(channel_of: OpenChannel) -> None:
    async with channel_of(ACCOUNTS) as channel:
        asker, other = await channel.connect(ASKER), await channel.connect(OTHER)
        async with answering(await channel.connect(CLOCK)):
            asking = [
                bus.request(Topic.of_request("web", name, "clock"), {"n": n}, deadline_s=LONG_S)
                for n in range(3 * MAX_PENDING_REQUESTS)
                for name, bus in (("asker", asker), ("other", other))
            ]
            answers = await asyncio.gather(*asking)
        assert [one.body for one in answers] == [
            {"asked": {"n": n}, "by": f"web.{name}"}
            for n in range(3 * MAX_PENDING_REQUESTS)
            for name in ("asker", "other")
        ]


@every_bus
@asynchronous
async def test_an_answer_lies_below_the_name_of_whoever_asked(channel_of: OpenChannel) -> None:
    async with channel_of(ACCOUNTS) as channel:
        reader, asker = await channel.connect(READER), await channel.connect(ASKER)
        everything = await reader.subscribe(TopicFilter("web"))
        async with answering(await channel.connect(CLOCK)):
            reply = await asker.request(TO_CLOCK, {}, deadline_s=LONG_S)
        seen = [await anext(everything), await anext(everything)]
        assert [one.topic.text for one in seen] == [
            "qvmi/v1/web/asker/request/clock",
            "qvmi/v1/web/asker/reply/clock",
        ]
        assert seen[1] == reply
        assert reply.answers == seen[0].id


@every_bus
@asynchronous
async def test_a_request_that_nobody_answers_ends_at_its_deadline(channel_of: OpenChannel) -> None:
    async with channel_of(ACCOUNTS) as channel:
        asker = await channel.connect(ASKER)
        with pytest.raises(RequestTimeout, match=r"request/clock: no answer within 0\.05 s"):
            await asker.request(TO_CLOCK, {}, deadline_s=0.05)


@every_bus
@asynchronous
async def test_an_answer_after_the_deadline_is_not_sent(channel_of: OpenChannel) -> None:
    async with channel_of(ACCOUNTS) as channel:
        asker, clock = await channel.connect(ASKER), await channel.connect(CLOCK)
        requests = await clock.serve("clock", vm="web")
        one = await short_lived(asker, requests)
        await until(lambda: one.remaining_s < 0)
        assert not await one.reply({})
        assert requests.late == 1


@every_bus
@asynchronous
async def test_a_request_that_came_too_late_is_refused_and_counted(channel_of: OpenChannel) -> None:
    async with channel_of(ACCOUNTS) as channel:
        asker, clock = await channel.connect(ASKER), await channel.connect(CLOCK)
        requests = await clock.serve("clock", vm="web")
        await asker.publish(request(deadline_s=-5.0))
        good = request()
        await asker.publish(good)
        assert (await anext(requests)).message == good
        assert (requests.expired, requests.refused) == (1, 1)


@every_bus
@asynchronous
async def test_a_request_for_the_far_future_is_refused_and_counted(channel_of: OpenChannel) -> None:
    async with channel_of(ACCOUNTS) as channel:
        asker, clock = await channel.connect(ASKER), await channel.connect(CLOCK)
        requests = await clock.serve("clock", vm="web")
        await asker.publish(request(deadline_s=MAX_DEADLINE_S + LONG_S))
        good = request()
        await asker.publish(good)
        assert (await anext(requests)).message == good
        assert requests.refused == 1


@every_bus
@asynchronous
async def test_a_request_that_comes_again_is_not_carried_out_again(channel_of: OpenChannel) -> None:
    async with channel_of(ACCOUNTS) as channel:
        asker, clock = await channel.connect(ASKER), await channel.connect(CLOCK)
        requests = await clock.serve("clock", vm="web")
        first, other = request(), request()
        for one in (first, first, other):
            await asker.publish(one)
        assert [(await anext(requests)).message for _ in range(2)] == [first, other]
        assert (requests.repeated, requests.refused) == (1, 1)


@every_bus
@asynchronous
async def test_nobody_has_anothers_request_taken_for_one_that_came_before(
    channel_of: OpenChannel,
) -> None:
    async with channel_of(ACCOUNTS) as channel:
        asker, other = await channel.connect(ASKER), await channel.connect(OTHER)
        requests = await (await channel.connect(CLOCK)).serve("clock", vm="web")
        hostile = request(Topic.of_request("web", "other", "clock"), name="same")
        honest = request(name="same")
        await other.publish(hostile)
        await asker.publish(honest)
        assert [(await anext(requests)).message for _ in range(2)] == [hostile, honest]


@every_bus
@pytest.mark.parametrize("when", ["before", "while"])
@asynchronous
async def test_a_retained_request_is_refused_and_counted(
    channel_of: OpenChannel, when: str
) -> None:
    async with channel_of(ACCOUNTS) as channel:
        asker, clock = await channel.connect(ASKER), await channel.connect(CLOCK)
        if when == "before":
            await asker.publish(request(), retain=True)
        requests = await clock.serve("clock", vm="web")
        if when == "while":
            await asker.publish(request(), retain=True)
        good = request()
        await asker.publish(good)
        assert (await anext(requests)).message == good
        assert requests.refused == 1


@every_bus
@asynchronous
async def test_a_codepack_reads_no_answers_of_another_and_asks_no_other_service(
    channel_of: OpenChannel,
) -> None:
    async with channel_of(ACCOUNTS) as channel:
        other = await channel.connect(OTHER)
        for topics in (
            TopicFilter("web", "asker", REPLY, "clock"),
            TopicFilter("web", "asker", REQUEST, "clock"),
            TopicFilter("web", "other", REPLY, ANY),
        ):
            with pytest.raises(BusRefused):
                await other.subscribe(topics)
        with pytest.raises(BusRefused, match="reply/idle"):
            await other.request(Topic.of_request("web", "other", "idle"), {}, deadline_s=LONG_S)


@every_bus
@asynchronous
async def test_nobody_asks_in_the_name_of_another(channel_of: OpenChannel) -> None:
    async with channel_of(ACCOUNTS) as channel:
        other, clock = await channel.connect(OTHER), await channel.connect(CLOCK)
        requests = await clock.serve("clock", vm="web")
        with pytest.raises(BusRefused):
            await other.request(TO_CLOCK, {}, deadline_s=LONG_S)
        with pytest.raises(BusRefused):
            await other.publish(request())
        own = request(Topic.of_request("web", "other", "clock"))
        await other.publish(own)
        assert (await anext(requests)).message == own


@every_bus
@asynchronous
async def test_only_the_service_that_was_asked_can_answer(channel_of: OpenChannel) -> None:
    async with channel_of(ACCOUNTS) as channel:
        asker, clock = await channel.connect(ASKER), await channel.connect(CLOCK)
        idle = await channel.connect(IDLE)
        requests = await clock.serve("clock", vm="web")
        asking = asyncio.create_task(asker.request(TO_CLOCK, {}, deadline_s=LONG_S))
        one = await anext(requests)
        for bus, peer in ((idle, "clock"), (asker, "clock"), (idle, "idle")):
            forged = Message(
                vm="web",
                codepack="asker",
                kind=REPLY,
                peer=peer,
                time=time.time(),
                answers=one.message.id,
                body={"forged": True},
            )
            if peer == "clock":
                with pytest.raises(BusRefused):
                    await bus.publish(forged)
            else:
                await bus.publish(forged)
        assert await one.reply({"forged": False})
        assert (await asking).body == {"forged": False}


@every_bus
@asynchronous
async def test_a_second_answer_to_the_same_request_goes_to_nobody(channel_of: OpenChannel) -> None:
    async with channel_of(ACCOUNTS) as channel:
        asker, clock = await channel.connect(ASKER), await channel.connect(CLOCK)
        requests = await clock.serve("clock", vm="web")
        for number in range(3):
            asking = asyncio.create_task(asker.request(TO_CLOCK, {}, deadline_s=LONG_S))
            one = await anext(requests)
            for turn in range(2):
                await one.reply({"number": number, "turn": turn})
            assert (await asking).body == {"number": number, "turn": 0}


@every_bus
@pytest.mark.parametrize("who", ["asker", "clock"])
@asynchronous
async def test_a_bus_that_is_closed_ends_what_waits_for_it(
    channel_of: OpenChannel, who: str
) -> None:
    async with channel_of(ACCOUNTS) as channel:
        buses = {"asker": await channel.connect(ASKER), "clock": await channel.connect(CLOCK)}
        requests = await buses["clock"].serve("clock", vm="web")
        asking = asyncio.create_task(buses["asker"].request(TO_CLOCK, {}, deadline_s=LONG_S))
        one = await anext(requests)
        await buses[who].close()
        if who == "asker":
            with pytest.raises(BusError):
                await asking
        else:
            with pytest.raises(StopAsyncIteration):
                await anext(requests)
            with pytest.raises(BusError):
                await one.reply({})
            asking.cancel()


@every_bus
@asynchronous
async def test_a_cancelled_request_leaves_the_bus_usable(channel_of: OpenChannel) -> None:
    async with channel_of(ACCOUNTS) as channel:
        asker = await channel.connect(ASKER)
        for _ in range(2 * MAX_PENDING_REQUESTS):
            asking = asyncio.create_task(asker.request(TO_CLOCK, {}, deadline_s=LONG_S))
            await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait({asking})
        async with answering(await channel.connect(CLOCK)):
            await asker.request(TO_CLOCK, {}, deadline_s=LONG_S)


@every_bus
@pytest.mark.parametrize("deadline_s", [0.0, -1.0, MAX_DEADLINE_S + 1, float("nan"), float("inf")])
@asynchronous
async def test_refuses_to_ask_with_a_deadline_that_cannot_be(
    channel_of: OpenChannel, deadline_s: float
) -> None:
    async with channel_of(ACCOUNTS) as channel:
        asker = await channel.connect(ASKER)
        with pytest.raises(UsageError):
            await asker.request(TO_CLOCK, {}, deadline_s=deadline_s)


@every_bus
@asynchronous
async def test_refuses_to_ask_or_answer_what_is_no_json(channel_of: OpenChannel) -> None:
    async with channel_of(ACCOUNTS) as channel:
        asker, clock = await channel.connect(ASKER), await channel.connect(CLOCK)
        requests = await clock.serve("clock", vm="web")
        with pytest.raises(BadMessage):
            await asker.request(TO_CLOCK, {"no": object()}, deadline_s=LONG_S)
        await asker.publish(request())
        one = await anext(requests)
        with pytest.raises(BadMessage):
            await one.reply({"no": object()})
