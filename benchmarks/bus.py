"""What the bus costs beside aiomqtt alone, and the outbox beside a broker that writes everything down.

``python benchmarks/bus.py [--quick]``. The round trip is a publish at QoS 1 that comes back to its sender
through the same mosquitto. Durable means: on the disk before the publish returns. mosquitto's own way to
that is ``autosave_on_changes``, with a session that outlives its connection.
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from race import Size, Times, in_turns, run, tell_ratio

from qvmi.bus.account import Account
from qvmi.bus.broker import Broker, find_mosquitto, mosquitto
from qvmi.bus.message import Message
from qvmi.bus.outbox import Outbox
from qvmi.bus.throttle import Throttle
from qvmi.bus.topic import TopicFilter

VM = "web"
PACK = Account.of_sender(VM, "pack", ["log"])
READER = Account.of_consumer(VM, "log")
READER_OF_PACK = Account.of_reader("reader", TopicFilter(VM, "pack"))
MOST_OF_RAW = 1.3
LEAST_DURABLE = 1500.0
"""Messages per second."""
DAY_S = 86400
TOGETHER = 64
"""Publishes that wait at the same time, as those of several codepacks do."""
CONFIG = """listener 0 {folder}/mqtt.sock
allow_anonymous true
persistence true
persistence_location {folder}/
autosave_on_changes true
autosave_interval 1
user root
"""


def message(number: int) -> Message:
    """This is an alert of some 300 bytes."""
    return Message(
        vm=VM, codepack="pack", kind="alert", time=time.time(), body={"n": number, "text": "x" * 80}
    )


def raw(broker: Path, account: Account | None = None) -> aiomqtt.Client:
    """This is aiomqtt's client with nothing of ours around it; without an account its session is kept."""
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho's
    properties.SessionExpiryInterval = 0 if account else DAY_S
    return aiomqtt.Client(
        str(broker),
        port=1,
        transport="unix",
        protocol=aiomqtt.ProtocolVersion.V5,
        username=account.name if account else None,
        password=account.secret if account else None,
        identifier=account.name if account else "kept",
        clean_start=account is not None,
        properties=properties,
    )


async def round_trips_of_raw(broker: Broker, count: int) -> float:
    """This is the median of so many round trips through aiomqtt alone, in seconds."""
    async with raw(broker.socket, PACK) as pack, raw(broker.socket, READER) as reader:
        await reader.subscribe(TopicFilter(VM).text, qos=1)
        taken = []
        for number in range(count):
            one = message(number)
            began = time.perf_counter()
            await pack.publish(one.topic.text, one.to_json(), qos=1)
            await anext(reader.messages)
            taken.append(time.perf_counter() - began)
    return Times(taken).median


async def round_trips_of_bus(broker: Broker, count: int) -> float:
    """This is the median of so many round trips through the bus, in seconds."""
    pack, reader = await broker.connect(PACK), await broker.connect(READER)
    arriving = await reader.subscribe(TopicFilter(VM))
    taken = []
    for number in range(count):
        one = message(number)
        began = time.perf_counter()
        await pack.publish(one)
        await anext(arriving)
        taken.append(time.perf_counter() - began)
    await pack.close()
    await reader.close()
    return Times(taken).median


FLOODER = Account.of_codepack(VM, "flooder")
THROTTLE = Account.of_reader("qvmi.throttle", TopicFilter())
MOST_OF_QUIET = 2.0
FLOOD = """
import socket, sys
path, user, packet = sys.argv[1], sys.argv[2], bytes.fromhex(sys.argv[3])
secret = sys.stdin.readline().strip().encode()
text = lambda data: len(data).to_bytes(2, "big") + data
body = text(b"MQTT") + b"\\x05\\xc2\\x00\\x3c\\x00" + b"".join(map(text, (b"x", user.encode(), secret)))
while True:
    with socket.socket(socket.AF_UNIX) as one:
        try:
            one.connect(path)
            one.sendall(bytes([0x10, len(body)]) + body)
            while one.recv(1024)[3] == 0:
                while True:
                    one.sendall(packet * 50)
        except (OSError, IndexError):
            pass
"""
"""A program that publishes as fast as it can, and comes back whenever it is thrown out."""


def a_publish_of_the_flooders() -> bytes:
    """This is an MQTT packet of some 250 bytes, at QoS 0."""
    one = Message(vm=VM, codepack="flooder", kind="alert", time=time.time(), body={})
    topic, data = one.topic.text.encode(), one.to_json()
    body = len(topic).to_bytes(2, "big") + topic + b"\x00" + data
    return bytes([0x30, len(body) & 0x7F | 0x80, len(body) >> 7]) + body


async def slow_round_trips(count: int, *, flood: bool) -> float:
    """This is what 99 of 100 round trips take at most, in seconds, while another floods or is quiet."""
    accounts = [PACK, READER_OF_PACK, FLOODER, THROTTLE]
    async with mosquitto(accounts) as broker:
        throttling = asyncio.create_task(Throttle(broker, THROTTLE, [FLOODER]).run(broker))
        pack, reader = await broker.connect(PACK), await broker.connect(READER_OF_PACK)
        arriving = await reader.subscribe(TopicFilter(VM, "pack"))
        arguments = (str(broker.socket), FLOODER.name, a_publish_of_the_flooders().hex())
        flooder = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", FLOOD if flood else "input()\ninput()", *arguments),
            stdin=asyncio.subprocess.PIPE,
        )
        assert flooder.stdin is not None  # noqa: S101 - asked for above
        flooder.stdin.write(f"{FLOODER.secret}\n".encode())
        taken = []
        for number in range(count):
            began = time.perf_counter()
            await pack.publish(message(number))
            await anext(arriving)
            taken.append(time.perf_counter() - began)
        flooder.kill()
        await flooder.wait()
        throttling.cancel()
        await asyncio.wait({throttling})
    return sorted(taken)[count * 99 // 100]


async def by_outbox(count: int, *, together: int) -> float:
    """This is how long so many durable publishes take, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        outbox = await Outbox.open(Path(folder) / "outbox.db", PACK, vm=VM, consumers=["log"])
        room = asyncio.Semaphore(together)

        async def publish(number: int) -> None:
            async with room:
                await outbox.publish(message(number))

        began = time.perf_counter()
        await asyncio.gather(*map(publish, range(count)))
        taken = time.perf_counter() - began
        await outbox.close()
    return taken


async def by_mosquitto(count: int) -> float:
    """This is how long so many publishes take that mosquitto writes down for a session, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "mosquitto.conf"
        config.write_text(CONFIG.format(folder=folder))
        broker = await asyncio.create_subprocess_exec(
            find_mosquitto(), "-c", config, stderr=asyncio.subprocess.DEVNULL
        )
        socket = Path(folder) / "mqtt.sock"
        try:
            while not socket.exists():  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
            async with raw(socket) as client:
                await client.subscribe("t", qos=1)
            async with raw(socket, PACK) as client:
                began = time.perf_counter()
                for number in range(count):
                    await client.publish("t", message(number).to_json(), qos=1)
                return time.perf_counter() - began
        finally:
            broker.terminate()
            await broker.wait()


async def round_trips(size: Size) -> tuple[float, float]:
    """These are the medians of both ways, taken in turns over one broker."""
    count, rounds = size.of(300, 20), size.of(7, 2)
    ours, theirs = [], []
    async with mosquitto([PACK, READER]) as broker:
        for _ in range(rounds):
            theirs.append(await round_trips_of_raw(broker, count))
            ours.append(await round_trips_of_bus(broker, count))
    return Times(ours).median, Times(theirs).median


def tell_flood(size: Size) -> None:
    """This prints what a codepack that floods costs the others."""
    trips = size.of(20_000, 100)
    quiet, flooded = in_turns(
        size.of(3, 1),
        lambda: asyncio.run(slow_round_trips(trips, flood=False)),
        lambda: asyncio.run(slow_round_trips(trips, flood=True)),
    )
    tell_ratio(
        "round trip of a message, 99 of 100, while another codepack floods",
        f"{flooded.median * 1e6:.0f} us",
        flooded.median / quiet.median,
        beside=f"while all are quiet {quiet.median * 1e6:.0f} us",
        target=f"at most {MOST_OF_QUIET} times",
        reached=flooded.median <= MOST_OF_QUIET * quiet.median,
    )


def bus(size: Size) -> None:
    """This prints the round trip's ratio, and how many messages a second become durable."""
    ours, theirs = asyncio.run(round_trips(size))
    tell_ratio(
        "round trip of a message, median",
        f"{ours * 1e6:.0f} us",
        ours / theirs,
        beside=f"aiomqtt alone {theirs * 1e6:.0f} us",
        target=f"at most {MOST_OF_RAW} times",
        reached=ours <= MOST_OF_RAW * theirs,
    )
    tell_flood(size)
    count, few = size.of(3000, 64), size.of(300, 16)
    together, alone, broker = in_turns(
        size.of(5, 1),
        lambda: asyncio.run(by_outbox(count, together=TOGETHER)),
        lambda: asyncio.run(by_outbox(few, together=1)),
        lambda: asyncio.run(by_mosquitto(few)),
    )
    each = few / broker.median
    tell_ratio(
        f"durable publishes, {TOGETHER} at a time",
        f"{count / together.median:.0f}/s",
        count / together.median / each,
        beside=f"mosquitto that writes everything down {each:.0f}/s",
        target=f"at least {LEAST_DURABLE:.0f}/s",
        reached=count / together.median >= LEAST_DURABLE,
    )
    print(f"    one after the other, each waiting for the disk: {few / alone.median:.0f}/s")


if __name__ == "__main__":
    run(bus)
