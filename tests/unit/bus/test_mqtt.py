"""The bus over MQTT: what a broker may answer, and what a hostile client may try."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiomqtt
import pytest

from qvmi.bus.account import Account
from qvmi.bus.broker import Broker, mosquitto
from qvmi.bus.message import MAX_MESSAGE_BYTES, Message
from qvmi.bus.mqtt import MqttBus
from qvmi.bus.topic import TopicFilter
from qvmi.errors import BrokerUnavailable, BusError, BusRefused
from tests.asynchronous import asynchronous
from tests.unit.bus.raw_mqtt import NOT_AUTHORIZED, greet_raw, publish_raw
from tests.unit.bus.scripted_broker import CONNECT, PUBLISH, SUBSCRIBE, scripted_broker

PACK = Account.of_codepack("web", "pack")
OTHER = Account.of_codepack("web", "other")
READER = Account.of_reader("reader", TopicFilter())

PUBACK_OK = b"\x40\x04ID\x00\x00"
SUBACK_OK = b"\x90\x04ID\x00\x01"


def message(**body: object) -> Message:
    return Message(vm="web", codepack="pack", kind="alert", time=time.time(), body=body)


@asynccontextmanager
async def raw_client(broker: Broker, account: Account) -> AsyncIterator[aiomqtt.Client]:
    """Connects with nothing of ours between the test and the broker."""
    async with aiomqtt.Client(
        str(broker.socket),
        port=1,
        transport="unix",
        protocol=aiomqtt.ProtocolVersion.V5,
        identifier="anything",
        username=account.name,
        password=account.secret,
        timeout=5,
    ) as client:
        yield client


# ------------------------------------------------------------------------------ what a broker answers


@pytest.mark.parametrize(
    ("reason", "words"),
    [(0x87, "Not authorized"), (0x97, "Quota exceeded"), (0x99, "Payload format invalid")],
)
@asynchronous
async def test_a_refused_publish_is_an_error_that_names_the_reason(
    tmp_path: Path, reason: int, words: str
) -> None:
    answers = {PUBLISH: b"\x40\x04ID" + bytes([reason]) + b"\x00"}
    async with scripted_broker(tmp_path, answers) as socket:
        bus = await MqttBus.connect(socket, PACK)
        with pytest.raises(BusRefused, match=words) as caught:
            await bus.publish(message())
        assert caught.value.topic == "qvmi/v1/web/pack/alert"
        await bus.close()


@asynchronous
async def test_a_publish_without_a_subscriber_is_no_error(tmp_path: Path) -> None:
    answers = {PUBLISH: b"\x40\x04ID\x10\x00"}  # 0x10: No matching subscribers
    async with scripted_broker(tmp_path, answers) as socket:
        bus = await MqttBus.connect(socket, PACK)
        await bus.publish(message())
        await bus.close()


@pytest.mark.parametrize(("reason", "words"), [(0x87, "Not authorized"), (0x8F, "Topic filter")])
@asynchronous
async def test_a_refused_subscription_is_an_error_and_can_be_tried_again(
    tmp_path: Path, reason: int, words: str
) -> None:
    answers = {SUBSCRIBE: b"\x90\x04ID\x00" + bytes([reason])}
    async with scripted_broker(tmp_path, answers) as socket:
        bus = await MqttBus.connect(socket, READER)
        for _ in range(2):
            with pytest.raises(BusRefused, match=words):
                await bus.subscribe(TopicFilter("web"))
        await bus.close()


@pytest.mark.parametrize("reason", [0x80, 0x84, 0x86, 0x87, 0x8A, 0x97])
@asynchronous
async def test_a_refused_connection_is_an_error(tmp_path: Path, reason: int) -> None:
    answers = {CONNECT: b"\x20\x03\x00" + bytes([reason, 0])}
    async with scripted_broker(tmp_path, answers) as socket:
        with pytest.raises(BusRefused, match=str(reason)):
            await MqttBus.connect(socket, PACK)


@asynchronous
async def test_where_nothing_listens_there_is_no_broker(tmp_path: Path) -> None:
    with pytest.raises(BrokerUnavailable, match="missing"):
        await MqttBus.connect(tmp_path / "missing", PACK)


@asynchronous
async def test_a_broker_that_hangs_up_in_greeting_is_none(tmp_path: Path) -> None:
    async with scripted_broker(tmp_path, {CONNECT: b""}) as socket:
        with pytest.raises(BrokerUnavailable, match="closed the connection"):
            await MqttBus.connect(socket, PACK)


@asynchronous
async def test_a_broker_that_says_nothing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qvmi.bus.mqtt.ANSWER_TIMEOUT_S", 0.2)
    async with scripted_broker(tmp_path, {CONNECT: None}) as socket:
        with pytest.raises(BrokerUnavailable):
            await MqttBus.connect(socket, PACK)
    async with scripted_broker(tmp_path, {}) as socket:
        bus = await MqttBus.connect(socket, READER)
        with pytest.raises(BusError, match=r"within 0\.2 s"):
            await bus.publish(message())
        with pytest.raises(BusError, match=r"within 0\.2 s"):
            await bus.subscribe(TopicFilter("web"))
        await bus.close()


@asynchronous
async def test_a_connection_that_breaks_ends_what_waits_for_an_answer(tmp_path: Path) -> None:
    async with scripted_broker(tmp_path, {PUBLISH: b"", SUBSCRIBE: SUBACK_OK}) as socket:
        bus = await MqttBus.connect(socket, READER)
        subscription = await bus.subscribe(TopicFilter("web"))
        publishes = [asyncio.create_task(bus.publish(message())) for _ in range(20)]
        reading = asyncio.create_task(anext(subscription))
        await asyncio.wait({*publishes, reading})
        for task in (*publishes, reading):
            with pytest.raises(BusError):
                await task
        await bus.close()


@asynchronous
async def test_a_message_that_overtakes_the_answer_to_its_subscription_is_not_lost(
    tmp_path: Path,
) -> None:
    sent = message()
    topic, data = b"qvmi/v1/web/pack/alert", sent.to_json()
    rest = len(topic).to_bytes(2, "big") + topic + b"\x02\x0b\x01" + data  # 0x0b: subscription 1
    publish = b"\x30" + bytes([len(rest) % 128 | 128, len(rest) // 128]) + rest
    async with scripted_broker(tmp_path, {SUBSCRIBE: publish + SUBACK_OK}) as socket:
        bus = await MqttBus.connect(socket, READER)
        assert await anext(await bus.subscribe(TopicFilter("web"))) == sent
        await bus.close()


@asynchronous
async def test_bytes_that_are_no_mqtt_are_a_lost_broker(tmp_path: Path) -> None:
    garbage = b"\xff\xff\xff\xff\xff\x00" * 20
    async with scripted_broker(tmp_path, {SUBSCRIBE: SUBACK_OK}, pushed=garbage) as socket:
        bus = await MqttBus.connect(socket, READER)
        subscription = await bus.subscribe(TopicFilter("web"))
        with pytest.raises(BusError):
            await anext(subscription)
        await bus.close()


# --------------------------------------------------------------------------- what a client may try


FORBIDDEN_TOPICS = [
    b"qvmi/v1/web/other/alert",
    b"qvmi/v1/web/other/alert/x",
    b"qvmi/v1/db/pack/alert",
    b"qvmi/v1/web",
    b"qvmi/v1/web/pack2/alert",
    b"qvmi/v1/web/pack-/alert",
    b"qvmi/v1/web/Pack/alert",
    b"qvmi/v1/web//pack/alert",
    b"/qvmi/v1/web/pack/alert",
    b"qvmi/v1/web/pack\x1b[2J/alert",
    b"qvmi/v1/web/pack\x00/alert",
    b"qvmi/v1/web/pack/\x00",
    b"qvmi/v1/web/pack/#",
    b"qvmi/v1/web/pack/+",
    b"qvmi/v1/web/+/alert",
    b"qvmi/v1/web/#",
    b"#",
    b"qvmi/v1/web/pack/\xff\xfe",
    b"qvmi/v1/web/pack/\xed\xa0\x80",
    b"qvmi/v1/web/../web/other/alert",
    b"QVMI/v1/web/pack/alert",
    b"qvmi/v2/web/pack/alert",
    b"$SYS/broker/version",
    b"$share/x/qvmi/v1/web/other/alert",
    b"",
    b"x" * 65535,
]


@asynchronous
async def test_the_broker_passes_on_nothing_that_a_codepack_publishes_elsewhere() -> None:
    async with mosquitto([PACK, READER]) as broker, raw_client(broker, READER) as reader:
        await reader.subscribe([("#", 1), ("$SYS/#", 1), ("qvmi/v1/#", 1)])
        for topic in FORBIDDEN_TOPICS:
            answer = publish_raw(broker.socket, PACK, topic, b"forged")
            assert answer[:1] in (b"", b"\xe0") or (answer[:1] == b"\x40" and answer[4] >= 0x80)
        answer = publish_raw(broker.socket, PACK, b"qvmi/v1/web/pack/alert", b"genuine")
        assert answer[:4] == b"\x40\x02\x00\x01"
        first = await anext(reader.messages)
        assert (str(first.topic), first.payload) == ("qvmi/v1/web/pack/alert", b"genuine")


@asynchronous
async def test_the_broker_shows_a_codepack_nothing() -> None:
    async with mosquitto([PACK, OTHER]) as broker, raw_client(broker, OTHER) as spy:
        await spy.subscribe([("#", 1), ("qvmi/v1/web/pack/#", 1), ("$share/a/qvmi/#", 1)])
        publish_raw(broker.socket, PACK, b"qvmi/v1/web/pack/alert", b"secret")
        await spy.unsubscribe("#")  # what was sent to it was sent before the answer to this
        assert len(spy.messages) == 0


@asynchronous
async def test_the_broker_lets_nobody_in_without_a_secret() -> None:
    impostor = Account(PACK.name, secret="guessed")  # noqa: S106 - a wrong one
    async with mosquitto([PACK]) as broker:
        for account in (None, impostor, Account("nobody")):
            assert greet_raw(broker.socket, account) == NOT_AUTHORIZED


@asynchronous
async def test_nobody_ends_another_accounts_session_by_taking_its_client_id() -> None:
    async with mosquitto([PACK, OTHER]) as broker:
        pack = await broker.connect(PACK)
        async with aiomqtt.Client(
            str(broker.socket),
            port=1,
            transport="unix",
            protocol=aiomqtt.ProtocolVersion.V5,
            identifier=PACK.name,
            username=OTHER.name,
            password=OTHER.secret,
        ):
            await pack.publish(message())
        await pack.publish(message())
        await pack.close()


@asynchronous
async def test_a_message_that_names_another_speaker_than_its_topic_is_refused_and_counted() -> None:
    genuine = message(claim="genuine")
    forged = json.dumps(json.loads(genuine.to_json()) | {"codepack": "other"}).encode()
    async with mosquitto([PACK, READER]) as broker:
        reader = await broker.connect(READER)
        subscription = await reader.subscribe(TopicFilter())
        async with raw_client(broker, PACK) as pack:
            await pack.publish("qvmi/v1/web/pack/alert", forged, qos=1)
            await pack.publish("qvmi/v1/web/pack/request/alert", genuine.to_json(), qos=1)
            await pack.publish("qvmi/v1/web/pack/<b>[red]", genuine.to_json(), qos=1)
            await pack.publish("qvmi/v1/web/pack/alert", b"\xff{", qos=1)
            await pack.publish("qvmi/v1/web/pack/alert", None, qos=1)
            await pack.publish("qvmi/v1/web/pack/alert", genuine.to_json(), qos=1)
        assert await anext(subscription) == genuine
        assert subscription.refused == 5
        await reader.close()


@asynchronous
async def test_an_oversize_message_does_not_reach_a_reader() -> None:
    genuine = message()
    async with mosquitto([PACK, READER]) as broker:
        reader = await broker.connect(READER)
        subscription = await reader.subscribe(TopicFilter())
        for size in (MAX_MESSAGE_BYTES + 1, 40 * MAX_MESSAGE_BYTES):
            answer = publish_raw(broker.socket, PACK, b"qvmi/v1/web/pack/alert", bytes(size))
            assert answer[:1] != b"\x40" or answer[4] >= 0x80
        bus = await broker.connect(PACK)
        await bus.publish(genuine)
        assert await anext(subscription) == genuine
        await bus.close()
        await reader.close()
