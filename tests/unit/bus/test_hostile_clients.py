"""What a codepack may try that has its own secret, or another's: a real broker, real clients."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qvmi.audit import AuditLog, verify
from qvmi.bus.account import Account
from qvmi.bus.broker import Broker, mosquitto
from qvmi.bus.broker_log import MAX_SUBSCRIPTIONS
from qvmi.bus.group import new_group
from qvmi.bus.message import MAX_MESSAGE_BYTES, Message
from qvmi.bus.mqtt import MqttBus
from qvmi.bus.refusals import Refusals
from qvmi.bus.subscription import Subscription
from qvmi.bus.throttle import Throttle
from qvmi.bus.topic import Topic, TopicFilter
from qvmi.errors import BusError, BusRefused
from tests.asynchronous import asynchronous, until
from tests.unit.bus.raw_mqtt import NOT_AUTHORIZED, RawClient, greet_raw, publish_raw

PACK = Account.of_codepack("web", "pack", services=["clock"])
OTHER = Account.of_codepack("web", "other", services=["clock"])
CLOCK = Account.of_service("web", "clock")
READER = Account.of_reader("reader", TopicFilter("web", "other"))
THROTTLE = Account.of_reader("qvmi.throttle", TopicFilter())
EVERYBODY = [PACK, OTHER, CLOCK, READER, THROTTLE]
LONG_S = 60.0


def client(broker: Broker, account: Account, program: str, *arguments: str) -> list[str]:
    """This is the command line of one of mosquitto's own clients."""
    return [
        program,
        "--unix",
        str(broker.socket),
        "-V",
        "5",
        "-q",
        "1",
        "-u",
        account.name,
        "-P",
        account.secret,
        *arguments,
    ]


async def output_of(command: list[str]) -> str:
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    async with asyncio.timeout(30):
        output, _ = await process.communicate()
    return output.decode()


def request_of(account: str = "pack", *, deadline_s: float = LONG_S) -> Message:
    return Message(
        vm="web",
        codepack=account,
        kind="request",
        peer="clock",
        time=time.time(),
        deadline=time.time() + deadline_s,
        body={"what": "time"},
    )


@asynchronous
async def test_any_client_can_ask() -> None:
    asked = request_of()
    async with mosquitto(EVERYBODY) as broker:
        requests = await (await broker.connect(CLOCK)).serve("clock", vm="web")
        asking = asyncio.create_task(
            output_of(
                client(
                    broker,
                    PACK,
                    "mosquitto_rr",
                    "-t",
                    "qvmi/v1/web/pack/request/clock",
                    "-e",
                    "qvmi/v1/web/pack/reply/clock",
                    "-m",
                    asked.to_json().decode(),
                    "-W",
                    "20",
                )
            )
        )
        one = await anext(requests)
        assert await one.reply({"now": 7})
        answer = json.loads(await asking)
    assert (answer["answers"], answer["body"], answer["kind"]) == (asked.id, {"now": 7}, "reply")


@asynchronous
async def test_any_client_can_answer_by_what_comes_with_a_request() -> None:
    async with mosquitto(EVERYBODY) as broker:
        pack = await broker.connect(PACK)
        listening = await asyncio.create_subprocess_exec(
            *client(
                broker,
                CLOCK,
                "mosquitto_sub",
                "-t",
                "qvmi/v1/web/+/request/clock",
                "-C",
                "1",
                "-F",
                "%R %D %C %P",
                "-W",
                "30",
            ),
            stdout=subprocess.PIPE,
        )
        asking = asyncio.create_task(ask_until_answered(pack))
        assert listening.stdout is not None
        line = (await listening.stdout.readline()).decode().split()
        await listening.wait()
        where, correlation, content_type, *properties = line
        assert content_type == "application/json"
        assert properties == ["vm:web", "codepack:pack", "kind:request", "version:1"]
        answer = {
            "version": 1,
            "id": "a1",
            "vm": "web",
            "codepack": "pack",
            "kind": "reply",
            "peer": "clock",
            "time": 1.5,
            "answers": correlation,
            "body": {"now": 9},
        }
        await output_of(
            client(broker, CLOCK, "mosquitto_pub", "-t", where, "-m", json.dumps(answer))
        )
        assert (await asking).body == {"now": 9}


async def ask_until_answered(pack: MqttBus) -> Message:
    """Asks again and again, as nobody tells when mosquitto_sub has subscribed; one is answered."""
    topic = Topic.of_request("web", "pack", "clock")
    asking: set[asyncio.Task[Message]] = set()
    async with asyncio.timeout(60):
        while True:
            asking.add(asyncio.create_task(pack.request(topic, {}, deadline_s=LONG_S)))
            done, _ = await asyncio.wait(asking, timeout=0.2, return_when=asyncio.FIRST_COMPLETED)
            if done or len(asking) > 50:
                for task in asking - done:
                    task.cancel()
                await asyncio.wait(asking)
                return done.pop().result()


@asynchronous
async def test_a_response_topic_that_points_elsewhere_leads_nowhere() -> None:
    asked = request_of().to_json()
    async with mosquitto(EVERYBODY) as broker:
        clock, other = await broker.connect(CLOCK), await broker.connect(OTHER)
        requests = await clock.serve("clock", vm="web")
        replies_to_other = await other.subscribe(TopicFilter("web", "other", "reply", "clock"))
        replies_to_pack = await (await broker.connect(PACK)).subscribe(
            TopicFilter("web", "pack", "reply", "clock")
        )
        await output_of(
            client(
                broker,
                PACK,
                "mosquitto_pub",
                "-t",
                "qvmi/v1/web/pack/request/clock",
                "-m",
                asked.decode(),
                "-D",
                "publish",
                "response-topic",
                "qvmi/v1/web/other/reply/clock",
            )
        )
        one = await anext(requests)
        assert await one.reply({"secret": 1})
        # pack has been thrown out by its own other client, but the broker knows where the answer went
        with pytest.raises(BusError):
            await anext(replies_to_pack)
        asking = request_of("other")
        await other.publish(asking)
        assert await (await anext(requests)).reply({"secret": 2})
        assert (await anext(replies_to_other)).body == {"secret": 2}
        assert replies_to_other.refused == 0


@pytest.mark.parametrize("sent", ["retained", "expired", "no-json", "another-name", "nested"])
@asynchronous
async def test_a_bad_request_of_any_client_is_refused_counted_and_audited(
    tmp_path: Path, sent: str
) -> None:
    whole = json.loads(request_of().to_json())
    payload, flags = {
        "retained": (json.dumps(whole), ["-r"]),
        "expired": (json.dumps(whole | {"deadline": time.time() - 1}), []),
        "no-json": ("{", []),
        "another-name": (json.dumps(whole | {"codepack": "other"}), []),
        "nested": ("[" * 60_000, []),
    }[sent]
    with AuditLog(tmp_path / "audit.log"):
        async with mosquitto(EVERYBODY) as broker:
            requests = await (await broker.connect(CLOCK)).serve("clock", vm="web")
            topic = "qvmi/v1/web/pack/request/clock"
            await output_of(
                client(broker, PACK, "mosquitto_pub", "-t", topic, "-m", payload, *flags)
            )
            good = request_of("other")
            await (await broker.connect(OTHER)).publish(good)
            assert (await anext(requests)).message == good
            assert requests.refused == 1
    assert verify(tmp_path / "audit.log").records == 1
    assert "refused on the bus: web.pack, 1 until now" in (tmp_path / "audit.log").read_text()


@asynchronous
async def test_a_property_that_paho_gives_up_over_throws_nobody_out() -> None:
    alert = Message(vm="web", codepack="other", kind="alert", time=0.0, body={})
    async with mosquitto(EVERYBODY) as broker:
        arriving = await (await broker.connect(READER)).subscribe(TopicFilter("web", "other"))
        await output_of(
            client(
                broker,
                OTHER,
                "mosquitto_pub",
                "-t",
                "qvmi/v1/web/other/alert",
                "-m",
                alert.to_json().decode(),
                "-D",
                "publish",
                "user-property",
                "a",
                "\ufeff",
            )
        )
        plain = Message(vm="web", codepack="other", kind="alert", time=1.0, body={})
        await (await broker.connect(OTHER)).publish(plain)
        assert [await anext(arriving) for _ in range(2)] == [alert, plain]


@asynchronous
async def test_whom_the_broker_refuses_by_itself_is_counted_and_audited(tmp_path: Path) -> None:
    with AuditLog(tmp_path / "audit.log"):
        async with mosquitto(EVERYBODY) as broker:
            for _ in range(3):
                assert (
                    greet_raw(broker.socket, Account.of_codepack("web", "pack")) == NOT_AUTHORIZED
                )
            topic = b"qvmi/v1/web/pack/alert"
            publish_raw(broker.socket, PACK, topic, bytes(2 * MAX_MESSAGE_BYTES))
            publish_raw(broker.socket, PACK, topic + b"\xff", b"{}")
            publish_raw(broker.socket, PACK, topic + b"/#", b"{}")
            await until(lambda: sum(broker.log.refused.values()) == 6)
            assert broker.log.refused == {
                "not authorised": 3,
                "oversize packet": 1,
                "malformed packet": 1,
                "protocol error": 1,
            }
    told = (tmp_path / "audit.log").read_text()
    for words in ("a stranger, 2 until now: not authorised", "web.pack, 1 until now: oversize"):
        assert words in told


@asynchronous
async def test_a_client_id_of_another_takes_over_nobodys_session() -> None:
    async with mosquitto(EVERYBODY) as broker:
        other = await broker.connect(OTHER)
        raw = RawClient(broker.socket, PACK, client_id=OTHER.name.encode())
        try:
            await other.publish(Message(vm="web", codepack="other", kind="a", time=0.0, body={}))
        finally:
            raw.close()


@asynchronous
async def test_whoever_joins_a_group_by_its_name_takes_nothing_away_from_its_members() -> None:
    topics = TopicFilter("web", "other")
    second = Account.of_reader("second", topics)
    async with mosquitto([*EVERYBODY, second]) as broker:
        group = new_group("night")
        members = [await broker.connect(each) for each in (READER, second)]
        shares = [await each.subscribe(topics, group=group) for each in members]
        intruders = [
            await asyncio.create_subprocess_exec(
                *("stdbuf", "-oL"),
                *client(broker, each, "mosquitto_sub", "-d", "-t", f"$share/night/{topics.text}"),
                stdout=subprocess.PIPE,
            )
            for each in (THROTTLE, PACK)  # one that may read there, and one that may not
        ]
        try:
            for each in intruders:
                await line_with(each, b"Subscribed")
            other = await broker.connect(OTHER)
            for number in range(40):
                await other.publish(
                    Message(vm="web", codepack="other", kind="alert", time=0.0, body={"n": number})
                )
            taken: list[object] = []
            reading = [asyncio.create_task(take(each, taken)) for each in shares]
            await until(lambda: len(taken) == 40)
            await asyncio.gather(*(each.close() for each in members), *reading)
        finally:
            for each in intruders:
                each.kill()
                await each.wait()
    assert sorted(taken, key=str) == sorted(range(40), key=str)


@pytest.mark.parametrize("length", [1, 2000])
@asynchronous
async def test_whoever_subscribes_to_too_much_is_thrown_out_and_nobody_else(
    tmp_path: Path, length: int
) -> None:
    alert = Message(vm="web", codepack="other", kind="alert", time=0.0, body={})
    with AuditLog(tmp_path / "audit.log"):
        async with mosquitto(EVERYBODY) as broker:
            arriving = await (await broker.connect(READER)).subscribe(TopicFilter("web", "other"))
            other = await broker.connect(OTHER)
            raw = RawClient(broker.socket, PACK)
            for packet in range(41):
                names = (f"{packet}/{each}/".encode() for each in range(25))
                filters = [b"x" * length + name for name in names]
                # The broker waits for whoever reads its log, which this task does, too.
                await asyncio.to_thread(raw.subscribe, filters)
            await until(raw.is_hung_up_on)
            await other.publish(alert)
            assert await anext(arriving) == alert
            again = await broker.connect(PACK)
            await again.publish(Message(vm="web", codepack="pack", kind="alert", time=0.0, body={}))
            assert broker.starts == 1
            raw.close()
    assert (
        f"web.pack, 1 until now: more than {MAX_SUBSCRIPTIONS}"
        in (tmp_path / "audit.log").read_text()
    )


async def take(share: Subscription, taken: list[object]) -> None:
    async for one in share:
        taken.append(one.body["n"])  # noqa: PERF401 - it is looked at meanwhile


async def line_with(process: asyncio.subprocess.Process, words: bytes) -> None:
    """This waits until a client says so."""
    assert process.stdout is not None
    async with asyncio.timeout(60):
        while words not in (line := await process.stdout.readline()):
            assert line, "it ended"


# ------------------------------------------------------------------------------------- stolen secrets


@asynchronous
async def test_a_revoked_secret_is_worth_nothing_and_nobody_else_notices(tmp_path: Path) -> None:
    with AuditLog(tmp_path / "audit.log"):
        async with mosquitto(EVERYBODY) as broker:
            thief, other = await broker.connect(PACK), await broker.connect(OTHER)
            requests = await (await broker.connect(CLOCK)).serve("clock", vm="web")
            pid = broker.pid
            await broker.revoke(PACK.name)
            with pytest.raises(BusError):
                await thief.publish(request_of())
            assert greet_raw(broker.socket, PACK) == NOT_AUTHORIZED
            asking = asyncio.create_task(
                other.request(Topic.of_request("web", "other", "clock"), {}, deadline_s=LONG_S)
            )
            await (await anext(requests)).reply({"still": "there"})
            assert (await asking).body == {"still": "there"}
            assert (broker.pid, broker.starts) == (pid, 1)
    assert "revoked on the bus: the account web.pack" in (tmp_path / "audit.log").read_text()


@asynchronous
async def test_a_new_secret_throws_out_whoever_has_the_old_one() -> None:
    renewed = Account.of_codepack("web", "pack")
    async with mosquitto(EVERYBODY) as broker:
        thief = await broker.connect(PACK)
        await broker.admit(renewed)
        with pytest.raises(BusError):
            await thief.publish(request_of())
        with pytest.raises(BusRefused):
            await broker.connect(PACK)
        owner = await broker.connect(renewed)
        await owner.publish(request_of())


@asynchronous
async def test_an_account_that_is_admitted_later_has_its_own_rights_only() -> None:
    late = Account.of_codepack("db", "late")
    async with mosquitto(EVERYBODY) as broker:
        assert greet_raw(broker.socket, late) == NOT_AUTHORIZED
        await broker.admit(late)
        bus = await broker.connect(late)
        await bus.publish(Message(vm="db", codepack="late", kind="a", time=0.0, body={}))
        with pytest.raises(BusRefused):
            await bus.publish(Message(vm="web", codepack="late", kind="a", time=0.0, body={}))


@asynchronous
async def test_a_revoked_account_stays_out_when_the_broker_was_killed() -> None:
    async with mosquitto(EVERYBODY) as broker:
        await broker.revoke(PACK.name)
        assert broker.pid is not None
        os.kill(broker.pid, signal.SIGKILL)
        await until(lambda: broker.starts == 2)
        await (await broker.connect(OTHER)).close()
        with pytest.raises(BusRefused):
            await broker.connect(PACK)


WITH_A_WILL = """
import asyncio, sys
from pathlib import Path
from qvmi.bus.account import Account
from qvmi.bus.group import new_group
from qvmi.bus.message import MAX_MESSAGE_BYTES, Message
from qvmi.bus.mqtt import MqttBus

async def main():
    pack = Account.of_codepack("web", "other")
    object.__setattr__(pack, "secret", sys.stdin.readline().strip())
    will = Message(vm="web", codepack="other", kind="status", time=0.0, body={"sight": "gone"})
    bus = await MqttBus.connect(Path(sys.argv[1]), pack, will=will)
    print("connected", flush=True)
    await asyncio.sleep(100)

asyncio.run(main())
"""


@asynchronous
async def test_the_broker_tells_of_a_codepack_that_was_killed() -> None:
    async with mosquitto(EVERYBODY) as broker:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", WITH_A_WILL, str(broker.socket)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{OTHER.secret}\n".encode())
        assert await process.stdout.readline() == b"connected\n"
        process.kill()
        await process.wait()
        listening = client(
            broker, READER, "mosquitto_sub", "-t", "qvmi/v1/web/other/status", "-C", "1", "-W", "25"
        )
        assert json.loads(await output_of(listening))["body"] == {"sight": "gone"}


# ------------------------------------------------------------------------------------------- a flood


ALERT = Message(vm="web", codepack="pack", kind="alert", time=0.0, body={}).to_json()


def flood(
    broker: Path, account: Account, topic: bytes = b"qvmi/v1/web/pack/alert", data: bytes = ALERT
) -> int:
    """Publishes as fast as the socket takes it until the broker hangs up, and tells how often."""
    raw = RawClient(broker, account)
    sent = 0
    try:
        while True:
            raw.publish(topic, data)
            sent += 1
    except OSError:
        return sent
    finally:
        raw.close()


@asynchronous
async def test_a_flood_is_cut_off_counted_and_audited_and_others_lose_nothing(
    tmp_path: Path,
) -> None:
    with AuditLog(tmp_path / "audit.log"):
        async with mosquitto(EVERYBODY) as broker:
            other, reader = await broker.connect(OTHER), await broker.connect(READER)
            arriving = await reader.subscribe(TopicFilter("web", "other"))
            throttle = Throttle(broker, THROTTLE, [PACK, OTHER], max_per_s=200, penalty_s=LONG_S)
            throttling = asyncio.create_task(throttle.run(broker))
            flooding = asyncio.create_task(asyncio.to_thread(flood, broker.socket, PACK))
            sent: list[Message] = []
            while not flooding.done() or len(sent) < 100:
                one = Message(vm="web", codepack="other", kind="alert", time=time.time(), body={})
                await other.publish(one)
                sent.append(one)
                assert await anext(arriving) == one
                await asyncio.sleep(0.02)  # a pace that is nobody's idea of a flood
            assert await flooding > 200
            await until(lambda: greet_raw(broker.socket, PACK) == NOT_AUTHORIZED)
            assert throttle.suspended == {PACK.name: 1}
            throttling.cancel()
            await asyncio.wait({throttling})
            await (await broker.connect(PACK)).close()  # admitted again
            assert broker.starts == 1
    assert "throttled on the bus: web.pack" in (tmp_path / "audit.log").read_text()


@pytest.mark.parametrize(
    ("topic", "data"),
    [(b"qvmi/v1/web/pack/alert", b"{"), (b"qvmi/v1/web/pack/NO NAME", ALERT)],
    ids=["no message", "no topic of ours"],
)
@asynchronous
async def test_a_flood_of_what_is_no_message_is_cut_off_too(topic: bytes, data: bytes) -> None:
    second = Account(f"{PACK.name}.outbox", PACK.publishes)
    async with mosquitto([*EVERYBODY, second]) as broker:
        throttle = Throttle(broker, THROTTLE, [PACK, second], max_per_s=200, penalty_s=LONG_S)
        throttling = asyncio.create_task(throttle.run(broker))
        await asyncio.to_thread(flood, broker.socket, second, topic, data)
        await until(lambda: greet_raw(broker.socket, second) == NOT_AUTHORIZED)
        await until(lambda: greet_raw(broker.socket, PACK) == NOT_AUTHORIZED)
        assert throttle.suspended == {PACK.name: 1}
        throttling.cancel()
        await asyncio.wait({throttling})
        for account in (PACK, second):
            await (await broker.connect(account)).close()


def test_a_million_refusals_are_twenty_lines(caplog: pytest.LogCaptureFixture) -> None:
    refusals = Refusals()
    with caplog.at_level(logging.WARNING, "qvmi.audit"):
        for _ in range(1_000_000):
            refusals.note("web.pack", "x")
    assert len(caplog.records) == 20
