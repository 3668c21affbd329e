"""A broker that other machines reach over TLS, and one that exists already."""

import asyncio
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from qvmi.bus.account import Account
from qvmi.bus.broker import Broker, find_mosquitto, mosquitto
from qvmi.bus.broker_address import BrokerAddress, Login
from qvmi.bus.bus import Bus, Channel
from qvmi.bus.message import Message
from qvmi.bus.mqtt import MqttBus, broker_at
from qvmi.bus.tls_listener import TlsListener
from qvmi.bus.topic import TopicFilter
from qvmi.errors import BrokerUnavailable, BusRefused, UsageError
from tests.asynchronous import asynchronous
from tests.unit.bus.certificates import make_ca, sign

HERE = "127.0.0.1"
PACK = Account.of_codepack("web", "pack")
READER = Account.of_reader("reader", TopicFilter("web"))
ALERT = Message(vm="web", codepack="pack", kind="alert", time=0.0, body={"claim": "x"})


def free_port() -> int:
    with socket.socket() as one:
        one.bind((HERE, 0))
        port: int = one.getsockname()[1]
        return port


def listener_in(folder: Path, *, address: str = HERE) -> tuple[TlsListener, Path]:
    """Makes a listener and tells the CA that signed it."""
    ca = make_ca(folder)
    signed = sign(folder, ca, address)
    return TlsListener(HERE, free_port(), signed.certificate, signed.key), ca.certificate


def address_of(tls: TlsListener, ca: Path) -> BrokerAddress:
    return BrokerAddress.parse(f"mqtts://{HERE}:{tls.port}?ca={ca}")


def listeners_of(broker: Broker) -> set[str]:
    """Asks the kernel, by way of ss, where the broker's process listens."""
    lines = subprocess.run(
        ["ss", "-Htlnp"], check=True, capture_output=True, text=True, timeout=20
    ).stdout.splitlines()
    return {line.split()[3] for line in lines if f"pid={broker.pid}," in line}


@asynchronous
async def test_a_message_crosses_from_the_tls_listener_to_the_unix_socket(tmp_path: Path) -> None:
    tls, ca = listener_in(tmp_path)
    async with mosquitto([PACK, READER], tls=tls) as broker:
        reader = await broker.connect(READER)
        arriving = await reader.subscribe(TopicFilter("web"))
        pack = await MqttBus.connect(address_of(tls, ca), PACK)
        await pack.publish(ALERT)
        assert await anext(arriving) == ALERT
        assert listeners_of(broker) == {f"{HERE}:{tls.port}"}
        await pack.close()


@asynchronous
async def test_the_tls_listener_speaks_with_nobody_in_the_clear(tmp_path: Path) -> None:
    tls, _ = listener_in(tmp_path)
    async with mosquitto([PACK], tls=tls):
        with pytest.raises(BrokerUnavailable):
            await MqttBus.connect(BrokerAddress.parse(f"mqtt://{HERE}:{tls.port}"), PACK)


@pytest.mark.parametrize("wrong", ["ca", "name"])
@asynchronous
async def test_no_secret_goes_to_a_broker_that_is_not_who_it_says(
    tmp_path: Path, wrong: str
) -> None:
    tls, ca = listener_in(tmp_path, address="192.0.2.1" if wrong == "name" else HERE)
    if wrong == "ca":
        ca = make_ca(tmp_path, "another").certificate
    async with mosquitto([PACK], tls=tls):
        with pytest.raises(BrokerUnavailable, match="certificate verify failed") as caught:
            await MqttBus.connect(address_of(tls, ca), PACK)
        assert PACK.secret not in str(caught.value)


@asynchronous
async def test_the_tls_listener_refuses_whom_the_unix_socket_refuses(tmp_path: Path) -> None:
    tls, ca = listener_in(tmp_path)
    async with mosquitto([PACK], tls=tls):
        for stranger in (Account.of_codepack("web", "pack"), READER):
            with pytest.raises(BusRefused) as caught:
                await MqttBus.connect(address_of(tls, ca), stranger)
            assert stranger.secret not in str(caught.value)


@asynchronous
async def test_a_port_that_is_taken_is_told_of(tmp_path: Path) -> None:
    tls, _ = listener_in(tmp_path)
    with socket.socket() as taken:
        taken.bind((HERE, tls.port))
        taken.listen()
        with pytest.raises(BrokerUnavailable, match="Address already in use"):
            async with mosquitto([PACK], tls=tls):
                pass


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "localhost", "127.0.0.1\nlistener 1883"])  # noqa: S104 - refused
def test_a_listener_is_at_one_address(tmp_path: Path, host: str) -> None:
    signed = sign(tmp_path, make_ca(tmp_path), HERE)
    with pytest.raises(UsageError):
        TlsListener(host, 8883, signed.certificate, signed.key)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_listener_has_a_port(tmp_path: Path, port: int) -> None:
    signed = sign(tmp_path, make_ca(tmp_path), HERE)
    with pytest.raises(UsageError):
        TlsListener(HERE, port, signed.certificate, signed.key)


def test_refuses_a_key_that_is_not_the_certificates(tmp_path: Path) -> None:
    ca = make_ca(tmp_path)
    signed = sign(tmp_path, ca, HERE)
    none = tmp_path / "none"
    for certificate, key in ((signed.certificate, ca.key), (signed.key, signed.key), (none, none)):
        with pytest.raises(UsageError, match=str(key)):
            TlsListener(HERE, 8883, certificate, key)


# ----------------------------------------------------------------------------- a broker that exists


@contextmanager
def foreign_mosquitto(folder: Path, user: str, secret: str) -> Iterator[int]:
    """Runs a mosquitto as somebody else would, and gives its port."""
    port, passwords = free_port(), folder / "passwords"
    subprocess.run(
        ["mosquitto_passwd", "-c", "-b", passwords, user, secret],
        check=True,
        capture_output=True,
        timeout=20,
    )
    config = folder / "mosquitto.conf"
    config.write_text(
        f"listener {port} {HERE}\nallow_anonymous false\npassword_file {passwords}\n"
        + ("user root\n" if os.geteuid() == 0 else "")
    )
    with subprocess.Popen([find_mosquitto(), "-c", config], stderr=subprocess.DEVNULL) as process:
        try:
            yield port
        finally:
            process.kill()


async def connected(channel: Channel, account: Account) -> Bus:
    """Connects, again while the broker is only starting."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await channel.connect(account)
            except BrokerUnavailable:
                await asyncio.sleep(0.01)


@asynchronous
async def test_accounts_share_the_user_of_a_broker_that_exists(tmp_path: Path) -> None:
    secret_file = tmp_path / "secret"
    secret_file.write_text("hunter2\n")
    with foreign_mosquitto(tmp_path, "everybody", "hunter2") as port:
        bus = broker_at(f"mqtt://everybody@{HERE}:{port}?secret-file={secret_file}")
        async with bus([PACK, READER]) as channel:
            pack, reader = await connected(channel, PACK), await connected(channel, READER)
            arriving = await reader.subscribe(TopicFilter("web"))
            await pack.publish(ALERT)
            assert await anext(arriving) == ALERT
            # The broker cannot tell them apart: it is checked on this side.
            with pytest.raises(BusRefused):
                await pack.publish(msgspec.structs.replace(ALERT, codepack="other"))
            for one in (pack, reader):
                await one.close()


@asynchronous
async def test_an_account_of_a_broker_that_exists_may_have_its_own_secret() -> None:
    async with mosquitto([PACK]) as broker, broker_at(f"unix://{broker.socket}")([PACK]) as channel:
        await (await channel.connect(PACK)).close()
        with pytest.raises(BusRefused):
            await channel.connect(Account.of_codepack("web", "pack"))


@asynchronous
async def test_a_wrong_secret_for_a_broker_that_exists_is_refused_and_not_shown() -> None:
    async with mosquitto([PACK]) as broker:
        async with broker_at(f"unix://web.pack:hunter2@{broker.socket}")([PACK]) as channel:
            with pytest.raises(BusRefused) as caught:
                await channel.connect(PACK)
        assert "hunter2" not in f"{caught.value} {caught.value.__cause__!r}"


@asynchronous
async def test_a_broker_that_is_not_there_is_told_by_its_address_without_the_secret() -> None:
    port = free_port()
    async with broker_at(f"mqtt://user:hunter2@{HERE}:{port}")([PACK]) as channel:
        with pytest.raises(BrokerUnavailable, match=f"mqtt://{HERE}:{port}") as caught:
            await channel.connect(PACK)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("mqtt://broker", "mqtt://broker:1883"),
        ("mqtts://user:hunter2@broker", "mqtts://broker:8883"),
        ("mqtt://[::1]:99", "mqtt://[::1]:99"),
        ("unix:///run/a%20b.sock", "/run/a b.sock"),
    ],
)
def test_an_address_is_told_without_its_secret(url: str, text: str) -> None:
    address = BrokerAddress.parse(url)
    assert str(address) == text
    assert "hunter2" not in repr(address)


def test_user_and_secret_may_have_any_letters() -> None:
    login = BrokerAddress.parse("mqtt://a%40b:p%3A%2F%C3%A9@broker").login
    assert login is not None
    assert (login.user, login.secret) == ("a@b", "p:/é")


def test_nothing_is_waited_for_at_a_pipe_that_nobody_writes_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="pipe: no secret is read from a pipe: name a file"):
        BrokerAddress.parse(f"mqtt://u@broker?secret-file={tmp_path}/pipe")
    with pytest.raises(UsageError, match="pipe: no certificates are read from a pipe: name a file"):
        BrokerAddress.parse(f"mqtts://broker?ca={tmp_path}/pipe")
    reading, writing = os.pipe()  # as of a shell's <(COMMAND)
    with os.fdopen(writing, "w") as file:
        file.write("hunter2\n")
    with os.fdopen(reading):
        login = BrokerAddress.parse(f"mqtt://u@broker?secret-file=/dev/fd/{reading}").login
    assert login == Login("u", "hunter2")


@pytest.mark.parametrize(
    ("path", "why"), [("", "Is a directory"), ("/none", "No such file"), ("/%00", "null byte")]
)
def test_says_in_words_why_a_secret_cannot_be_read(tmp_path: Path, path: str, why: str) -> None:
    with pytest.raises(UsageError, match=f": no secret can be read there: .*{why}"):
        BrokerAddress.parse(f"mqtt://u@broker?secret-file={tmp_path}{path}")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "broker",
        "http://hunter2@broker",
        "mqtt://",
        "mqtt://u:hunter2@broker:port",
        "mqtt://u:hunter2@broker:65536",
        "mqtt://u:hunter2@broker/path",
        "mqtt://u:hunter2@broker?ca=/x",
        "mqtt://u:hunter2@broker?secret-file=/x",
        "mqtt://:hunter2@broker",
        "mqtt://u@broker?secret-file=/nowhere/hunter",
        "mqtt://u:hunter2@broker?insecure=1",
        "mqtt://u:hunter2@broker#x",
        "mqtts://u:hunter2@broker?ca=/nowhere",
        "mqtts://u:hunter2@broker?ca=/etc/hostname",
        "mqtt://[::1",
        "unix://relative/path",
        "unix://",
        f"unix:///{'x' * 108}",
        f"mqtt://u:hunter2@{'a' * 64}:1883",
        "mqtt://u:hunter2@a..b",
        "mqtt://u:hunter2@broker:0",
        "mqtt://u:hunter2@bro\nker",
        "mqtt://u:hunter2@broker\t",
        "unix:///run/\udcff",
        "mqtts://u:hunter2@broker?ca=/%00",
    ],
)
def test_refuses_an_address_that_is_none_without_showing_its_secret(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        BrokerAddress.parse(url)
    assert "hunter2" not in str(caught.value)
