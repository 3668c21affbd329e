"""The mosquitto of our own."""

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from qvmi.bus.account import Account
from qvmi.bus.broker import MAX_RESTARTS, Broker, find_mosquitto, mosquitto
from qvmi.bus.message import Message
from qvmi.bus.topic import TopicFilter
from qvmi.errors import BrokerUnavailable, BusError
from tests.asynchronous import asynchronous
from tests.unit.bus.processes import ended
from tests.unit.bus.raw_mqtt import NOT_AUTHORIZED, greet_raw

PACK = Account.of_codepack("web", "pack")
OTHER = Account.of_codepack("web", "other")
READER = Account.of_reader("reader", TopicFilter("web"))

PARENT = """
import asyncio
from qvmi.bus.account import Account
from qvmi.bus.broker import mosquitto

async def main():
    async with mosquitto([Account.of_codepack("web", "pack")]) as broker:
        print(broker.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def message() -> Message:
    return Message(vm="web", codepack="pack", kind="alert", time=time.time(), body={})


def kill(broker: Broker) -> int:
    """Kills mosquitto and waits until it is dead, so that nothing connects to it while it dies."""
    pid = broker.pid
    assert pid is not None
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    assert ended(pid)
    return pid


def socket_inodes(pid: int | None) -> set[str]:
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # the connection that tried whether it accepts
            kind, _, inode = str(entry.readlink()).partition(":")
            inodes |= {inode.strip("[]")} if kind == "socket" else set()
    return inodes


def network_inodes(pid: int | None, table: str) -> set[str]:
    lines = Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
    return {line.split()[9] for line in lines}


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def kill_until_given_up(broker: Broker) -> None:
    while True:
        await broker.accepting()
        if broker.pid is not None:
            kill(broker)
        await asyncio.sleep(0)


def script(tmp_path: Path, text: str) -> Path:
    program = tmp_path / "mosquitto"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o700)
    return program


def test_finds_the_program_where_distributions_put_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert find_mosquitto().name == "mosquitto"


def test_says_how_to_install_a_mosquitto_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BrokerUnavailable, match="apt install mosquitto"):
        find_mosquitto(path=str(tmp_path))


@asynchronous
async def test_listens_only_in_a_folder_of_its_owner() -> None:
    async with mosquitto([PACK]) as broker:
        folder = broker.socket.parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for name in ("mosquitto.conf", "passwords", "access"):
            assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600


@asynchronous
async def test_listens_on_no_network_address() -> None:
    async with mosquitto([PACK]) as broker:
        sockets = socket_inodes(broker.pid)
        assert sockets
        for table in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
            assert not sockets & network_inodes(broker.pid, table)


@asynchronous
async def test_refuses_the_anonymous() -> None:
    async with mosquitto([PACK]) as broker:
        assert greet_raw(broker.socket, None) == NOT_AUTHORIZED
        assert greet_raw(broker.socket, PACK) == 0


@asynchronous
async def test_nothing_is_left_when_the_block_ends() -> None:
    async with mosquitto([PACK]) as broker:
        pid, folder = broker.pid, broker.socket.parent
    assert pid is not None
    assert ended(pid, within_s=0.0)
    assert not folder.exists()


@asynchronous
async def test_nothing_is_left_when_the_block_is_cancelled() -> None:
    started: asyncio.Future[Broker] = asyncio.get_running_loop().create_future()

    async def block() -> None:
        async with mosquitto([PACK]) as broker:
            started.set_result(broker)
            await asyncio.Event().wait()

    task = asyncio.create_task(block())
    broker = await started
    pid = broker.pid
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pid is not None
    assert ended(pid, within_s=0.0)
    assert not broker.socket.parent.exists()


@asynchronous
async def test_an_error_in_the_block_comes_out_as_it_is() -> None:
    with pytest.raises(PermissionError):
        async with mosquitto([PACK]):
            raise PermissionError


@asynchronous
async def test_a_mosquitto_that_hangs_is_ended_too() -> None:
    async with mosquitto([PACK]) as broker:
        pid = broker.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
    assert ended(pid, within_s=0.0)


def test_ends_when_its_owner_is_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not ended(pid, within_s=0.0)
        parent.kill()
    assert ended(pid)


@asynchronous
async def test_a_killed_mosquitto_is_an_error_for_all_who_were_connected() -> None:
    async with mosquitto([PACK, READER]) as broker:
        pack, reader = await broker.connect(PACK), await broker.connect(READER)
        subscription = await reader.subscribe(TopicFilter("web"))
        kill(broker)
        with pytest.raises(BusError, match="lost"):
            await anext(subscription)
        with pytest.raises(BusError):
            await pack.publish(message())
        with pytest.raises(BusError, match="lost"):
            await reader.subscribe(TopicFilter("web"))
        await pack.close()
        await reader.close()


@asynchronous
async def test_a_killed_mosquitto_is_started_again_and_can_be_connected_to() -> None:
    async with mosquitto([PACK, READER]) as broker:
        killed = kill(broker)
        pack, reader = await broker.connect(PACK), await broker.connect(READER)
        subscription = await reader.subscribe(TopicFilter("web"))
        sent = message()
        await pack.publish(sent)
        assert await anext(subscription) == sent
        assert broker.starts == 2
        assert broker.pid != killed
        await pack.close()
        await reader.close()


@asynchronous
async def test_a_mosquitto_that_hangs_is_replaced_when_somebody_connects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qvmi.bus.mqtt.ANSWER_TIMEOUT_S", 0.3)
    async with mosquitto([PACK]) as broker:
        hung = broker.pid
        assert hung is not None
        os.kill(hung, signal.SIGSTOP)
        pack = await broker.connect(PACK)
        await pack.publish(message())
        assert ended(hung)
        assert broker.starts == 2
        await pack.close()


@asynchronous
async def test_a_mosquitto_that_ends_again_and_again_is_given_up() -> None:
    async with mosquitto([PACK]) as broker:
        with pytest.raises(BrokerUnavailable, match="in a row"):
            await kill_until_given_up(broker)
        assert broker.starts == MAX_RESTARTS + 1


@asynchronous
async def test_says_what_mosquitto_said_when_it_does_not_start(tmp_path: Path) -> None:
    program = script(tmp_path, "echo Error: no luck today >&2; exit 3")
    with pytest.raises(BrokerUnavailable, match="no luck today"):
        async with mosquitto([PACK], program=program):
            raise AssertionError("it started")


@asynchronous
async def test_keeps_only_the_end_of_what_mosquitto_says(tmp_path: Path) -> None:
    program = script(tmp_path, "yes x | head -c 1000000 >&2; echo the end >&2; exit 3")
    with pytest.raises(BrokerUnavailable, match=r"the end$") as caught:
        async with mosquitto([PACK], program=program):
            raise AssertionError("it started")
    assert len(str(caught.value)) < 10_000


@asynchronous
async def test_a_program_that_is_none_is_no_broker(tmp_path: Path) -> None:
    with pytest.raises(BrokerUnavailable):
        async with mosquitto([PACK], program=tmp_path / "missing"):
            raise AssertionError("it started")


@asynchronous
async def test_says_what_to_do_where_the_path_is_too_long_for_a_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with pytest.raises(BrokerUnavailable, match="TMPDIR"):
        async with mosquitto([PACK]):
            raise AssertionError("it started")
    assert list(long.iterdir()) == []


@asynchronous
async def test_a_folder_that_cannot_be_made_is_no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nonexistent")
    with pytest.raises(BrokerUnavailable, match="folder"):
        async with mosquitto([PACK]):
            raise AssertionError("it started")


@asynchronous
async def test_a_path_with_spaces_is_no_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spaced = tmp_path / "a b\tc"
    spaced.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spaced))
    async with mosquitto([PACK]) as broker:
        bus = await broker.connect(PACK)
        await bus.publish(message())
        await bus.close()


@asynchronous
async def test_a_connect_that_is_cancelled_leaves_no_connection_behind() -> None:
    async with mosquitto([PACK]) as broker:
        await (await broker.connect(PACK)).close()
        before = open_descriptors()
        for yields in range(40):
            connecting = asyncio.create_task(broker.connect(PACK))
            for _ in range(yields):
                await asyncio.sleep(0)
            connecting.cancel()
            try:
                await (await connecting).close()
            except asyncio.CancelledError:
                continue
        assert open_descriptors() == before


def take_all_connections(path: Path) -> list[socket.socket]:
    """Connects more often than mosquitto allows, says nothing, and waits until the last is sent away."""
    taken: list[socket.socket] = []
    for _ in range(300):
        taken.append(socket.socket(socket.AF_UNIX))
        taken[-1].connect(str(path))
    with suppress(ConnectionError):
        assert taken[-1].recv(1) == b""
    return taken


@asynchronous
async def test_whoever_uses_up_all_connections_harms_neither_the_broker_nor_its_owner() -> None:
    async with mosquitto([PACK, OTHER]) as broker:
        before = await broker.connect(PACK)
        taken = await asyncio.to_thread(take_all_connections, broker.socket)
        try:
            after = await broker.connect(OTHER)
            await broker.admit(READER)
            await before.publish(message())
            assert broker.starts == 1
            await after.close()
            await before.close()
        finally:
            for one in taken:
                one.close()


@asynchronous
async def test_only_its_owner_may_go_where_the_owner_connects() -> None:
    async with mosquitto([PACK]) as broker:
        broker.socket.parent.chmod(0o2711)
        (own,) = (one for one in broker.socket.parent.iterdir() if one.is_dir())
        assert stat.S_IMODE(own.stat().st_mode) == 0o700
        assert [one.name for one in own.iterdir()] == ["mqtt.sock"]
