"""What a codepack may ask over the bus is what its policy grants: the broker itself refuses the rest."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from qvmi.bus.account import Account
from qvmi.bus.broker import mosquitto
from qvmi.bus.bus import OpenChannel
from qvmi.bus.local import in_process
from qvmi.bus.topic import REPLY, Topic, TopicFilter
from qvmi.errors import BusRefused
from qvmi.policy import READ_ONLY, Grant, Policy
from tests.asynchronous import asynchronous

SERVICES: Final = {
    "manager": frozenset({Grant.READ_REGISTERS, Grant.PAUSE}),
    "network": frozenset({Grant.NETWORK_CAPTURE, Grant.NIC}),
}
READER: Final = Account.of_granted("web", "reader", READ_ONLY, services=SERVICES)
CAPTURER: Final = Account.of_granted(
    "web", "capturer", Policy(frozenset({Grant.NETWORK_CAPTURE})), services=SERVICES
)
NOBODY: Final = Account.of_granted("web", "nobody", Policy(frozenset()), services=SERVICES)
ALL: Final = (READER, CAPTURER, NOBODY)
NETWORK: Final = Account.of_service("web", "network")
MANAGER: Final = Account.of_service("web", "manager")
LISTENER: Final = Account.of_reader("listener", TopicFilter())
DEADLINE_S: Final = 60.0

MAY_ASK: Final = {
    ("reader", "manager"): True,
    ("reader", "network"): False,
    ("capturer", "manager"): False,
    ("capturer", "network"): True,
    ("nobody", "manager"): False,
    ("nobody", "network"): False,
    ("nobody", "anything"): False,
}

every_bus = pytest.mark.parametrize(
    "channel_of", [pytest.param(in_process, id="local"), pytest.param(mosquitto, id="mqtt")]
)


def account(name: str) -> Account:
    return next(one for one in ALL if one.name == f"web.{name}")


@every_bus
@pytest.mark.parametrize(("who", "service"), [pair for pair, may in MAY_ASK.items() if not may])
@asynchronous
async def test_who_is_not_granted_what_a_service_does_cannot_ask_it(
    channel_of: OpenChannel, who: str, service: str
) -> None:
    async with channel_of([*ALL, NETWORK, MANAGER]) as channel:
        bus = await channel.connect(account(who))
        with pytest.raises(BusRefused):
            await bus.request(Topic.of_request("web", who, service), {}, deadline_s=DEADLINE_S)
        await bus.close()


@every_bus
@asynchronous
async def test_who_is_granted_it_is_answered(channel_of: OpenChannel) -> None:
    async with channel_of([*ALL, NETWORK, MANAGER]) as channel:
        bus, network = await channel.connect(CAPTURER), await channel.connect(NETWORK)
        requests = await network.serve("network", vm="web")
        asking = asyncio.create_task(
            bus.request(
                Topic.of_request("web", "capturer", "network"), {"n": 1}, deadline_s=DEADLINE_S
            )
        )
        await (await anext(requests)).reply({"n": 2})
        assert (await asking).body == {"n": 2}
        await network.close()
        await bus.close()


@asynccontextmanager
async def heard(socket: Path) -> AsyncIterator[asyncio.StreamReader]:
    """Listens to everything, by the broker's own client."""
    process = await asyncio.create_subprocess_exec(
        *(
            "stdbuf",
            "-oL",
            "mosquitto_sub",
            "--unix",
            socket,
            "-u",
            LISTENER.name,
            "-P",
            LISTENER.secret,
        ),
        *("-V", "5", "-q", "1", "-t", "qvmi/#", "-F", "%t", "-d"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(DEADLINE_S):
            while b"Subscribed" not in await process.stdout.readline():
                pass
            yield process.stdout
    finally:
        process.kill()
        await process.wait()


async def says(socket: Path, who: Account, topic: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *("mosquitto_pub", "--unix", socket, "-u", who.name, "-P", who.secret),
        *("-V", "5", "-q", "1", "-t", topic, "-m", "{}"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    await process.wait()


@asynchronous
async def test_the_broker_lets_through_what_is_granted_and_nothing_else() -> None:
    """Oracle: mosquitto's own clients, which know nothing of policies."""
    forbidden = [
        "qvmi/v1/web/reader/request/network/x",
        "qvmi/v1/web/reader/reply/manager",
        "qvmi/v1/web/capturer/request/network",
        "qvmi/v1/db/reader/request/manager",
        "qvmi/v1/web/manager/status",
        # One of endlessly many kinds, of each of which the broker would keep a message.
        "qvmi/v1/web/reader/kind-1",
        "other",
    ]
    async with mosquitto([*ALL, LISTENER]) as broker, heard(broker.socket) as lines:
        for topic in forbidden:
            await says(broker.socket, READER, topic)
        allowed = set()
        for (who, service), may in MAY_ASK.items():
            topic = f"qvmi/v1/web/{who}/request/{service}"
            await says(broker.socket, account(who), topic)
            if may:
                allowed.add(topic)
        last = "qvmi/v1/web/reader/status"
        await says(broker.socket, READER, last)
        through = set()
        async for line in lines:
            text = line.decode().strip()
            if text == last:
                break
            if text.startswith("qvmi/"):
                through.add(text)
    assert through == allowed


def test_replies_are_read_of_those_services_alone() -> None:
    assert READER.reads == (TopicFilter("web", "reader", REPLY, "manager"),)
    assert NOBODY.reads == ()
