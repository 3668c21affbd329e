"""What every bus does: the one within a process and the one over MQTT."""

import asyncio
import time
from collections.abc import Sequence

import pytest

from qvmi.bus.account import Account
from qvmi.bus.broker import mosquitto
from qvmi.bus.bus import Bus, OpenChannel
from qvmi.bus.group import new_group
from qvmi.bus.local import in_process
from qvmi.bus.message import MAX_MESSAGE_BYTES, Message
from qvmi.bus.subscription import MAX_WAITING_MESSAGES, Subscription
from qvmi.bus.topic import TopicFilter
from qvmi.errors import BadMessage, BusError, BusRefused, UsageError
from tests.asynchronous import asynchronous, until

PACK = Account.of_codepack("web", "pack")
OTHER = Account.of_codepack("web", "other")
READER = Account.of_reader("reader", TopicFilter("web"))
ACCOUNTS: Sequence[Account] = (PACK, OTHER, READER)

every_bus = pytest.mark.parametrize(
    "channel_of", [pytest.param(in_process, id="local"), pytest.param(mosquitto, id="mqtt")]
)


def message(number: int = 0, *, codepack: str = "pack", kind: str = "alert") -> Message:
    body: dict[str, object] = {"number": number}
    return Message(vm="web", codepack=codepack, kind=kind, time=time.time(), body=body)


async def fence(bus: Bus, codepack: str) -> None:
    """Publishes a message that marks the end of what a test publishes."""
    await bus.publish(message(codepack=codepack, kind="fence"))


async def until_fence(subscription: Subscription) -> list[Message]:
    arrived: list[Message] = []
    async for one in subscription:
        if one.kind == "fence":
            return arrived
        arrived.append(one)
    raise AssertionError("the subscription ended")


@every_bus
@asynchronous
async def test_what_is_published_arrives_whole_and_in_order(channel_of: OpenChannel) -> None:
    async with channel_of(ACCOUNTS) as channel:
        pack, reader = await channel.connect(PACK), await channel.connect(READER)
        subscription = await reader.subscribe(TopicFilter("web"))
        sent = [message(number) for number in range(300)]
        for one in sent:
            await pack.publish(one)
        await fence(pack, "pack")
        assert await until_fence(subscription) == sent


@every_bus
@asynchronous
async def test_a_subscription_gets_what_its_filter_selects_and_nothing_else(
    channel_of: OpenChannel,
) -> None:
    async with channel_of(ACCOUNTS) as channel:
        pack, other = await channel.connect(PACK), await channel.connect(OTHER)
        reader = await channel.connect(READER)
        subscription = await reader.subscribe(TopicFilter("web", "pack"))
        await other.publish(message(1, codepack="other"))
        wanted = message(2)
        await pack.publish(wanted)
        await fence(pack, "pack")
        assert await until_fence(subscription) == [wanted]


@every_bus
@asynchronous
async def test_each_of_several_overlapping_subscriptions_gets_a_message_once(
    channel_of: OpenChannel,
) -> None:
    async with channel_of(ACCOUNTS) as channel:
        pack, reader = await channel.connect(PACK), await channel.connect(READER)
        filters = [TopicFilter("web"), TopicFilter("web", "pack"), TopicFilter("web")]
        subscriptions = [await reader.subscribe(topics) for topics in filters]
        sent = message()
        await pack.publish(sent)
        await fence(pack, "pack")
        assert [await until_fence(each) for each in subscriptions] == [[sent]] * 3


@every_bus
@asynchronous
async def test_closing_one_subscription_leaves_another_of_the_same_filter(
    channel_of: OpenChannel,
) -> None:
    async with channel_of(ACCOUNTS) as channel:
        pack, reader = await channel.connect(PACK), await channel.connect(READER)
        closed = await reader.subscribe(TopicFilter("web"))
        kept = await reader.subscribe(TopicFilter("web"))
        await closed.close()
        await closed.close()
        sent = message()
        await pack.publish(sent)
        assert await anext(kept) == sent
        with pytest.raises(StopAsyncIteration):
            await anext(closed)


@every_bus
@asynchronous
async def test_a_filter_can_be_subscribed_to_again_after_it_was_closed(
    channel_of: OpenChannel,
) -> None:
    async with channel_of(ACCOUNTS) as channel:
        pack, reader = await channel.connect(PACK), await channel.connect(READER)
        await (await reader.subscribe(TopicFilter("web"))).close()
        again = await reader.subscribe(TopicFilter("web"))
        sent = message()
        await pack.publish(sent)
        assert await anext(again) == sent


@every_bus
@pytest.mark.parametrize("kind", ["alert", "status"])
@asynchronous
async def test_nobody_publishes_in_the_name_of_another(channel_of: OpenChannel, kind: str) -> None:
    async with channel_of(ACCOUNTS) as channel:
        pack, reader = await channel.connect(PACK), await channel.connect(READER)
        subscription = await reader.subscribe(TopicFilter("web"))
        for bus in (pack, reader):
            with pytest.raises(BusRefused, match=f"qvmi/v1/web/other/{kind}"):
                await bus.publish(message(codepack="other", kind=kind))
        await fence(pack, "pack")
        assert await until_fence(subscription) == []


@every_bus
@asynchronous
async def test_nobody_reads_what_is_not_for_it(channel_of: OpenChannel) -> None:
    async with channel_of(ACCOUNTS) as channel:
        pack, reader = await channel.connect(PACK), await channel.connect(READER)
        with pytest.raises(BusRefused, match="qvmi/v1/web/other/#"):
            await pack.subscribe(TopicFilter("web", "other"))
        with pytest.raises(BusRefused, match="qvmi/v1/#"):
            await reader.subscribe(TopicFilter())


@every_bus
@asynchronous
async def test_a_stranger_and_a_wrong_secret_are_refused(channel_of: OpenChannel) -> None:
    async with channel_of(ACCOUNTS) as channel:
        for account in (Account.of_codepack("web", "pack"), Account.of_codepack("web", "stranger")):
            with pytest.raises(BusRefused):
                await channel.connect(account)


@every_bus
@asynchronous
async def test_a_message_that_is_too_long_is_refused_and_nothing_else_is_harmed(
    channel_of: OpenChannel,
) -> None:
    async with channel_of(ACCOUNTS) as channel:
        pack, reader = await channel.connect(PACK), await channel.connect(READER)
        subscription = await reader.subscribe(TopicFilter("web"))
        body: dict[str, object] = {"text": "x" * MAX_MESSAGE_BYTES}
        with pytest.raises(BadMessage):
            await pack.publish(
                Message(vm="web", codepack="pack", kind="alert", time=0.0, body=body)
            )
        await fence(pack, "pack")
        assert await until_fence(subscription) == []


@every_bus
@asynchronous
async def test_the_longest_message_passes(channel_of: OpenChannel) -> None:
    async with channel_of(ACCOUNTS) as channel:
        pack, reader = await channel.connect(PACK), await channel.connect(READER)
        subscription = await reader.subscribe(TopicFilter("web"))
        empty = Message(vm="web", codepack="pack", kind="alert", time=0.0, body={"text": ""})
        room = MAX_MESSAGE_BYTES - len(empty.to_json())
        longest = Message(
            vm="web",
            codepack="pack",
            kind="alert",
            time=0.0,
            id=empty.id,
            body={"text": "x" * room},
        )
        assert len(longest.to_json()) == MAX_MESSAGE_BYTES
        await pack.publish(longest)
        assert await anext(subscription) == longest


@every_bus
@asynchronous
async def test_a_reader_that_is_too_slow_loses_counted_messages_and_nobody_else_does(
    channel_of: OpenChannel,
) -> None:
    async with channel_of(ACCOUNTS) as channel:
        pack, reader = await channel.connect(PACK), await channel.connect(READER)
        slow = await reader.subscribe(TopicFilter("web"))
        quick = await reader.subscribe(TopicFilter("web", "pack"))
        sent = [message(number) for number in range(MAX_WAITING_MESSAGES + 100)]
        for one in sent:
            await pack.publish(one)
            assert await anext(quick) == one
        assert slow.dropped == 100
        assert [await anext(slow) for _ in range(MAX_WAITING_MESSAGES)] == sent[:-100]


@every_bus
@asynchronous
async def test_many_publishes_at_once_all_arrive(channel_of: OpenChannel) -> None:
    async with channel_of(ACCOUNTS) as channel:
        pack, reader = await channel.connect(PACK), await channel.connect(READER)
        subscription = await reader.subscribe(TopicFilter("web"))
        sent = [message(number) for number in range(200)]
        await asyncio.gather(*(pack.publish(one) for one in sent))
        await fence(pack, "pack")
        assert {one.id for one in await until_fence(subscription)} == {one.id for one in sent}


@every_bus
@asynchronous
async def test_a_closed_bus_refuses_work_and_ends_its_subscriptions(
    channel_of: OpenChannel,
) -> None:
    async with channel_of(ACCOUNTS) as channel:
        pack, reader = await channel.connect(PACK), await channel.connect(READER)
        subscription = await reader.subscribe(TopicFilter("web"))
        sent = message()
        await pack.publish(sent)
        assert await anext(subscription) == sent
        for bus in (reader, reader, pack):
            await bus.close()
        assert [one async for one in subscription] == []
        with pytest.raises(BusError):
            await pack.publish(message())
        with pytest.raises(BusError):
            await reader.subscribe(TopicFilter("web"))


@every_bus
@asynchronous
async def test_a_cancelled_publish_leaves_the_bus_usable(channel_of: OpenChannel) -> None:
    async with channel_of(ACCOUNTS) as channel:
        pack, reader = await channel.connect(PACK), await channel.connect(READER)
        subscription = await reader.subscribe(TopicFilter("web", kind="status"))
        for number in range(50):
            publishing = asyncio.create_task(pack.publish(message(number)))
            await asyncio.sleep(0)
            publishing.cancel()
            await asyncio.wait({publishing})
        sent = message(kind="status")
        await pack.publish(sent)
        assert await anext(subscription) == sent


@every_bus
@asynchronous
async def test_who_subscribes_late_gets_what_was_retained_last(channel_of: OpenChannel) -> None:
    async with channel_of(ACCOUNTS) as channel:
        pack, reader = await channel.connect(PACK), await channel.connect(READER)
        statuses = [message(number, kind="status") for number in range(3)]
        for status in statuses:
            await pack.publish(status, retain=True)
        await pack.publish(message())
        late = [await reader.subscribe(TopicFilter("web", kind="status")) for _ in range(2)]
        new = message(4, kind="status")
        await pack.publish(new)
        for subscription in late:
            assert [await anext(subscription) for _ in range(2)] == [statuses[2], new]


@every_bus
@asynchronous
async def test_who_wants_nothing_retained_is_told_that_there_was(channel_of: OpenChannel) -> None:
    async with channel_of(ACCOUNTS) as channel:
        pack, reader = await channel.connect(PACK), await channel.connect(READER)
        await pack.publish(message(1), retain=True)
        arriving = await reader.subscribe(TopicFilter("web", kind="alert"), retained=False)
        await pack.publish(message(2), retain=True)
        new = message(3)
        await pack.publish(new)
        assert await anext(arriving) == new
        assert arriving.refused == 2


@every_bus
@asynchronous
async def test_a_bus_that_is_closed_leaves_its_will_to_all_and_for_those_to_come(
    channel_of: OpenChannel,
) -> None:
    async with channel_of(ACCOUNTS) as channel:
        will = message(kind="status")
        pack, reader = await channel.connect(PACK, will=will), await channel.connect(READER)
        other = await channel.connect(OTHER)
        arriving = await reader.subscribe(TopicFilter("web"))
        first = message(1, codepack="other")
        await other.publish(first)
        for _ in range(2):
            await pack.close()
        assert [await anext(arriving) for _ in range(2)] == [first, will]
        late = await reader.subscribe(TopicFilter("web", "pack", "status"))
        assert await anext(late) == will


@every_bus
@asynchronous
async def test_nobody_leaves_a_will_in_the_name_of_another(channel_of: OpenChannel) -> None:
    async with channel_of(ACCOUNTS) as channel:
        with pytest.raises(BusRefused):
            await channel.connect(PACK, will=message(codepack="other", kind="status"))


@every_bus
@asynchronous
async def test_a_flood_that_a_slow_reader_cannot_take_costs_nobody_else_a_message(
    channel_of: OpenChannel,
) -> None:
    async with channel_of(ACCOUNTS) as channel:
        pack, other = await channel.connect(PACK), await channel.connect(OTHER)
        reader = await channel.connect(READER)
        slow = await reader.subscribe(TopicFilter("web"))
        seen = await reader.subscribe(TopicFilter("web", "pack"))
        for number in range(MAX_WAITING_MESSAGES + 50):
            await pack.publish(message(number))
            await anext(seen)
        sent = [message(number, codepack="other") for number in range(100)]
        for one in sent:
            await other.publish(one)
        await fence(other, "other")
        arrived = await until_fence(slow)
        assert [one for one in arrived if one.codepack == "other"] == sent
        assert [one.body["number"] for one in arrived if one.codepack == "pack"] == list(
            range(MAX_WAITING_MESSAGES - 101)
        )
        assert slow.dropped == 151


@every_bus
@asynchronous
async def test_those_of_a_group_share_the_messages_and_others_get_all(
    channel_of: OpenChannel,
) -> None:
    second = Account.of_reader("second", TopicFilter("web"))
    async with channel_of([*ACCOUNTS, second]) as channel:
        pack = await channel.connect(PACK)
        buses = [await channel.connect(READER), await channel.connect(second)]
        topics = TopicFilter("web", "pack", "alert")
        group = new_group("night")
        members = [await bus.subscribe(topics, group=group) for bus in buses]
        alone = await buses[0].subscribe(topics)
        sent = [message(number) for number in range(100)]
        for one in sent:
            await pack.publish(one)
        assert [await anext(alone) for _ in sent] == sent
        shares: list[list[Message]] = [[], []]

        async def take(member: Subscription, share: list[Message]) -> None:
            async for one in member:
                share.append(one)  # noqa: PERF401 - it is looked at meanwhile

        taking = [
            asyncio.create_task(take(member, share))
            for member, share in zip(members, shares, strict=True)
        ]
        await until(lambda: sum(map(len, shares)) >= len(sent))
        for bus in buses:
            await bus.close()
        await asyncio.gather(*taking)
        assert sorted(one.id for share in shares for one in share) == sorted(one.id for one in sent)
        assert min(map(len, shares)) > 25


@every_bus
@asynchronous
async def test_refuses_a_subscription_that_a_broker_could_not_tell_from_another(
    channel_of: OpenChannel,
) -> None:
    async with channel_of(ACCOUNTS) as channel:
        reader = await channel.connect(READER)
        group = new_group("night")
        await reader.subscribe(TopicFilter("web"), group=group)
        await reader.subscribe(TopicFilter("web"))
        with pytest.raises(UsageError, match="in the group"):
            await reader.subscribe(TopicFilter("web"), group=group)
        with pytest.raises(UsageError, match="retained=True"):
            await reader.subscribe(TopicFilter("web"), retained=False)
        for group in ("", "a/b", "+", "#", "night", f"a/{new_group('b')}"):
            with pytest.raises(UsageError):
                await reader.subscribe(TopicFilter("web"), group=group)
