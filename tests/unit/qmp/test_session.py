"""A QMP session against servers that misbehave: each ends in time, with the documented error."""

import asyncio
import json
import socket
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from qvmi.errors import (
    MachineGone,
    NotQmp,
    QmpBusy,
    QmpCommandFailed,
    QmpProtocolError,
    QmpTimeout,
    QvmiError,
    SocketUnreachable,
    UsageError,
)
from qvmi.qmp.client import MAX_MESSAGE
from qvmi.qmp.events import EventsLost, Reset, Stop
from qvmi.qmp.session import QmpSession
from tests.asynchronous import asynchronous
from tests.proofs import proof_size
from tests.unit.qmp.scripted_server import (
    GREETING,
    Handler,
    answer_everything,
    greeted,
    served,
    watched_loop,
)

SOON = 0.6


async def for_ever() -> None:
    await asyncio.Event().wait()


def says(first: bytes, *, then_closes: bool = False) -> Handler:
    async def handle(_: Reader, writer: Writer) -> None:
        writer.write(first)
        await writer.drain()
        if not then_closes:
            await for_ever()

    return handle


async def flood(_: Reader, writer: Writer) -> None:
    writer.write(b'{"QMP": "')
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="qvmi-") as name:
        yield Path(name)


# ------------------------------------------------------------------------------------- no session


@pytest.mark.parametrize(
    ("missing", "told"), [("q.sock", "its folder exists"), ("no/q.sock", "there is no folder")]
)
@asynchronous
async def test_a_missing_socket_is_unreachable(folder: Path, missing: str, told: str) -> None:
    async with watched_loop():
        with pytest.raises(SocketUnreachable, match=told) as caught:
            await QmpSession.connect(folder / missing)
    assert caught.value.target == str(folder / missing)


@pytest.mark.parametrize(
    ("first", "named"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP server"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH server"),
        (b"RFB 003.008\n", "VNC server"),
        (b"QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) ", "human monitor"),
        (b"$T02thread:01;#04", "gdbstub"),
        (b"\x00\xff\x1b[31m", "no QMP greeting"),
    ],
)
@asynchronous
async def test_names_what_speaks_in_place_of_qmp(first: bytes, named: str) -> None:
    async with watched_loop(), served(says(first)) as path:
        with pytest.raises(NotQmp, match=named):
            await QmpSession.connect(path)


@pytest.mark.parametrize(
    "first",
    [
        b'{"hello": 1}\n',
        b'{"QMP": {}}\n',
        b'{"QMP": {"version": {}, "capabilities": []}}\n',
        b'{"QMP": {"version": {"qemu": {"major": "x"}}, "capabilities": []}}\n',
        b'{"QMP": {"version": {"qemu": {}}, "capabilities": 7}}\n',
        b'{"QMP": ' + b"[" * 100_000 + b"\n",
        b'{"QMP": \xff\xfe}\n',
        b"{]\n",
    ],
)
@asynchronous
async def test_a_greeting_of_another_form_is_no_qmp(first: bytes) -> None:
    async with watched_loop(), served(says(first)) as path:
        with pytest.raises(NotQmp):
            await QmpSession.connect(path, timeout_s=SOON)


@pytest.mark.parametrize("first", [b"", GREETING[:40]])
@asynchronous
async def test_a_server_that_hangs_up_is_no_qmp(first: bytes) -> None:
    async with watched_loop(), served(says(first, then_closes=True)) as path:
        with pytest.raises(NotQmp):
            await QmpSession.connect(path)


@asynchronous
async def test_a_qemu_that_ends_right_behind_its_greeting_is_gone() -> None:
    async with (
        watched_loop(),
        served(says(GREETING, then_closes=True)) as path,
        await QmpSession.connect(path) as session,
    ):
        with pytest.raises(MachineGone):
            await session.execute("query-status")


@asynchronous
async def test_half_a_greeting_ends_in_time() -> None:
    async with watched_loop(), served(says(GREETING[:40])) as path:
        with pytest.raises(NotQmp, match="did not end it in time"):
            await QmpSession.connect(path, timeout_s=SOON)


@asynchronous
async def test_endless_bytes_without_a_line_end_are_no_qmp() -> None:
    async with watched_loop(), served(flood) as path:
        with pytest.raises(NotQmp):
            await QmpSession.connect(path)


@asynchronous
async def test_a_silent_program_that_is_no_qemu_is_named() -> None:
    async with watched_loop(), served(says(b"")) as path:
        with pytest.raises(NotQmp, match=r"(?i)py.* \(pid \d+\).*no QEMU"):
            await QmpSession.connect(path, timeout_s=SOON)


@asynchronous
async def test_a_socket_that_serves_another_client_is_busy_and_names_it(folder: Path) -> None:
    path = str(folder / "qmp.sock")
    with closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(path)
        server.listen(1)
        with closing(socket.socket(socket.AF_UNIX)) as holder:
            holder.connect(path)
            accepted, _ = server.accept()
            with closing(accepted):
                async with watched_loop():
                    with pytest.raises(QmpBusy, match="held by this very process"):
                        await QmpSession.connect(path)


@asynchronous
async def test_a_full_queue_of_clients_is_busy(folder: Path) -> None:
    path = str(folder / "qmp.sock")
    with closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(path)
        server.listen(0)
        with closing(socket.socket(socket.AF_UNIX)) as waiting:
            waiting.connect(path)
            async with watched_loop():
                with pytest.raises(QmpBusy, match="queue"):
                    await QmpSession.connect(path, timeout_s=SOON)


@asynchronous
async def test_a_client_that_gives_up_while_connecting_leaves_nothing_behind() -> None:
    async with watched_loop(), served(says(GREETING[:40])) as path:
        task = asyncio.create_task(QmpSession.connect(path))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@asynchronous
async def test_a_libvirt_address_is_not_connected_to() -> None:
    with pytest.raises(UsageError, match="LibvirtSession"):
        await QmpSession.connect("libvirt:web1")


# ---------------------------------------------------------------------------------------- commands


@asynchronous
async def test_answers_in_any_order_reach_those_who_asked() -> None:
    held: list[dict[str, Any]] = []

    def backwards(request: dict[str, Any]) -> bytes:
        if request["execute"] == "qmp_capabilities":
            return answer_everything(request)
        held.append(request)
        if len(held) < 3:
            return b""
        return b"".join(
            json.dumps({"id": each["id"], "return": each["execute"]}).encode() + b"\n"
            for each in reversed(held)
        )

    async with (
        watched_loop(),
        served(greeted(backwards)) as path,
        await QmpSession.connect(path) as session,
    ):
        assert await asyncio.gather(*map(session.execute, "abc")) == ["a", "b", "c"]


@asynchronous
async def test_a_refusal_carries_qemus_words() -> None:
    def refuse(request: dict[str, Any]) -> bytes:
        error = {"class": "GenericError", "desc": "no such thing"}
        body = {"return": {}} if request["execute"] == "qmp_capabilities" else {"error": error}
        return json.dumps(body | {"id": request["id"]}).encode() + b"\n"

    async with (
        watched_loop(),
        served(greeted(refuse)) as path,
        await QmpSession.connect(path) as session,
    ):
        with pytest.raises(QmpCommandFailed) as caught:
            await session.execute("thing", {"n": 1})
        assert caught.value.command == "thing"
        assert caught.value.error_class == "GenericError"
        assert caught.value.description == "no such thing"


@asynchronous
async def test_an_answer_that_never_comes_times_out_and_the_session_goes_on() -> None:
    late: list[bytes] = []

    def first_is_late(request: dict[str, Any]) -> bytes:
        answer = answer_everything(request)
        if request["execute"] != "slow":
            return b"".join([*late, answer])
        late.append(answer)
        return b""

    async with (
        watched_loop(),
        served(greeted(first_is_late)) as path,
        await QmpSession.connect(path) as session,
    ):
        with pytest.raises(QmpTimeout) as caught:
            await session.execute("slow", timeout_s=0.1)
        assert (caught.value.command, caught.value.timeout_s) == ("slow", 0.1)
        assert await session.execute("quick") == {}
        assert await session.execute("quick") == {}


@asynchronous
async def test_a_cancelled_command_leaves_the_session_usable() -> None:
    release = asyncio.Event()

    async def handle(reader: Reader, writer: Writer) -> None:
        writer.write(GREETING)
        while line := await reader.readline():
            request = json.loads(line)
            if request["execute"] == "slow":
                await release.wait()
            writer.write(answer_everything(request))

    async with (
        watched_loop(),
        served(handle) as path,
        await QmpSession.connect(path) as session,
    ):
        task = asyncio.create_task(session.execute("slow"))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release.set()
        assert await session.execute("quick") == {}


@asynchronous
async def test_a_hang_up_in_mid_answer_means_that_the_machine_is_gone() -> None:
    async def handle(reader: Reader, writer: Writer) -> None:
        writer.write(GREETING)
        await reader.readline()
        writer.write(b'{"return": {"half')

    async with (
        watched_loop(),
        served(handle) as path,
        await QmpSession.connect(path) as session,
    ):
        waiting = [asyncio.create_task(session.execute(f"command-{n}")) for n in range(5)]
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(end) for end in ends] == [MachineGone] * 5
        with pytest.raises(MachineGone, match="while doing: later"):
            await session.execute("later")
        with pytest.raises(MachineGone):
            session.events()


@pytest.mark.parametrize(
    "line",
    [
        b"garbage\n",
        b"[]\n",
        b'"QMP"\n',
        b'{"return": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
        b'{"error": {"class": "GenericError", "desc": "JSON parse error"}}\n',
        b'{"event": 7}\n',
        b"x" * (MAX_MESSAGE + 2),
    ],
    ids=["garbage", "array", "string", "deep", "parse error", "event", "too long"],
)
@asynchronous
async def test_what_is_no_qmp_ends_the_session_with_a_protocol_error(line: bytes) -> None:
    async def handle(reader: Reader, writer: Writer) -> None:
        writer.write(GREETING)
        await reader.readline()
        await reader.readline()
        writer.write(line)
        await writer.drain()
        await for_ever()

    async with (
        watched_loop(),
        served(handle) as path,
        await QmpSession.connect(path) as session,
    ):
        for command in ("first", "later"):
            with pytest.raises(QmpProtocolError):
                await session.execute(command)


@pytest.mark.parametrize("holds", [b"", b'"return": "\xff", '])
@asynchronous
async def test_an_answer_that_holds_no_value_fails_its_command_alone(holds: bytes) -> None:
    def empty(request: dict[str, Any]) -> bytes:
        if request["execute"] != "empty":
            return answer_everything(request)
        return b'{%b"id": %d}\n' % (holds, request["id"])

    async with (
        watched_loop(),
        served(greeted(empty)) as path,
        await QmpSession.connect(path) as session,
    ):
        with pytest.raises(QmpProtocolError, match="empty"):
            await session.execute("empty")
        assert await session.execute("other") == {}


@asynchronous
async def test_answers_that_nobody_asked_for_are_passed_over() -> None:
    def chatty(request: dict[str, Any]) -> bytes:
        strays = b'{"return": 1, "id": 99999}\n{"return": 2}\n{"return": 3, "id": "x"}\n'
        return strays + answer_everything(request)

    async with (
        watched_loop(),
        served(greeted(chatty)) as path,
        await QmpSession.connect(path) as session,
    ):
        assert await session.execute("anything") == {}


@asynchronous
async def test_a_refused_negotiation_ends_the_session() -> None:
    def refuse(request: dict[str, Any]) -> bytes:
        error = {"class": "CommandNotFound", "desc": "go away"}
        return json.dumps({"error": error, "id": request["id"]}).encode() + b"\n"

    async with (
        watched_loop(),
        served(greeted(refuse)) as path,
        await QmpSession.connect(path) as session,
    ):
        with pytest.raises(QvmiError, match="go away"):
            await session.execute("anything")


@asynchronous
async def test_more_commands_than_qemu_takes_at_once_wait_for_their_turn() -> None:
    async with (
        watched_loop(),
        served(greeted(answer_everything)) as path,
        await QmpSession.connect(path) as session,
    ):
        answers = await asyncio.gather(*(session.execute(f"c{n}") for n in range(1000)))
        assert answers == [{}] * 1000


@asynchronous
async def test_a_qemu_that_answers_nothing_is_not_sent_ever_more() -> None:
    received = count()
    latest = 0

    async def handle(reader: Reader, writer: Writer) -> None:
        nonlocal latest
        writer.write(GREETING)
        while await reader.readline():
            latest = next(received)

    async with (
        watched_loop(),
        served(handle) as path,
        await QmpSession.connect(path) as session,
    ):
        for _ in range(3):
            asked = (session.execute("x", timeout_s=0.2) for _ in range(300))
            ends = await asyncio.gather(*asked, return_exceptions=True)
            assert {type(end) for end in ends} == {QmpTimeout}
        assert latest == 256


@asynchronous
async def test_arguments_that_json_cannot_hold_are_refused() -> None:
    async with (
        watched_loop(),
        served(greeted(answer_everything)) as path,
        await QmpSession.connect(path) as session,
    ):
        with pytest.raises(UsageError, match="thing"):
            await session.execute("thing", {"what": object()})
        assert await session.execute("other") == {}


# ------------------------------------------------------------------------------------------ closing


@asynchronous
async def test_closing_ends_what_is_under_way_and_what_comes_later() -> None:
    async with watched_loop(), served(says(GREETING)) as path:
        session = await QmpSession.connect(path)
        with session.events() as events:
            waiting = asyncio.create_task(session.execute("waits"))
            await asyncio.sleep(0)
            await session.close()
            await session.close()
            with pytest.raises(UsageError, match="was closed"):
                await waiting
            with pytest.raises(UsageError, match="was closed"):
                await session.execute("later")
            assert [event async for event in events] == []


@asynchronous
async def test_closing_does_not_wait_for_a_qemu_that_reads_nothing() -> None:
    async with watched_loop(), served(says(GREETING)) as path:
        session = await QmpSession.connect(path)
        large = {"text": "x" * (4 << 20)}
        with pytest.raises(QmpTimeout):
            await session.execute("large", large, timeout_s=0.1)
        await session.close()


# ------------------------------------------------------------------------------------------- events


def event(name: str, **data: object) -> bytes:
    timestamp = {"seconds": 1700000000, "microseconds": 250000}
    body = {"event": name, "data": data, "timestamp": timestamp}
    return json.dumps(body).encode() + b"\r\n"


@asynchronous
async def test_events_arrive_typed_and_counted() -> None:
    async def handle(reader: Reader, writer: Writer) -> None:
        writer.write(GREETING)
        while line := await reader.readline():
            writer.write(event("RESET", guest=True, reason="guest-reset"))
            writer.write(answer_everything(json.loads(line)))

    async with (
        watched_loop(),
        served(handle) as path,
        await QmpSession.connect(path) as session,
    ):
        with session.events() as events:
            await session.execute("anything")
            expected = Reset(name="RESET", at=1700000000.25, guest=True, reason="guest-reset")
            assert await anext(events) == expected
        assert session.run_state_events["RESET"] == 2
        assert session.run_state_events["STOP"] == 0


@asynchronous
async def test_a_storm_of_events_loses_no_reset_unnoticed_and_delays_no_answer(
    proof_count: Any,  # noqa: ANN401 - a fixture
) -> None:
    storm = proof_size(ci=50_000, full=1_000_000)
    batch = event("RTC_CHANGE", offset=1) * 999 + event("RESET", guest=True, reason="x")

    async def handle(reader: Reader, writer: Writer) -> None:
        writer.write(GREETING)
        await reader.readline()
        request = json.loads(await reader.readline())
        for _ in range(storm // 1000):
            writer.write(batch)
            await writer.drain()
        writer.write(answer_everything(request))
        await for_ever()

    async with (
        watched_loop(seconds=100),
        served(handle) as path,
        await QmpSession.connect(path) as session,
    ):
        with session.events() as events:
            assert await session.execute("anything", timeout_s=90) == {}
            assert session.run_state_events["RESET"] == storm // 1000
            lost = await anext(events)
            assert isinstance(lost, EventsLost)
            kept = 0
            while lost.ordinary + lost.run_state + kept < storm:
                await anext(events)
                kept += 1
    proof_count(storm)


@asynchronous
async def test_an_event_with_data_of_another_form_still_counts() -> None:
    odd = event("RESET", guest="maybe", reason=7) + b'{"event": "STOP"}\n'

    def answer(request: dict[str, Any]) -> bytes:
        return (odd if request["execute"] == "go" else b"") + answer_everything(request)

    async with (
        watched_loop(),
        served(greeted(answer)) as path,
        await QmpSession.connect(path) as session,
    ):
        with session.events() as events:
            await session.execute("go")
            assert await anext(events) == Reset(name="RESET", at=1700000000.25)
            assert await anext(events) == Stop(name="STOP", at=0.0)
