"""The client against recorded stubs, and stubs that lose, repeat and invent packets."""

import asyncio
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from contextlib import suppress
from itertools import count

import pytest

from qvmi.addr import Pa, Va
from qvmi.arch import aarch64
from qvmi.errors import (
    GdbstubBusy,
    GdbstubProtocolError,
    GdbstubRequestFailed,
    GdbstubTimeout,
    GuestRunning,
    MachineGone,
    MemoryFault,
    NotGdbstub,
    UsageError,
)
from qvmi.gdbstub.channel import Channel
from qvmi.gdbstub.client import Breakpoint, GdbClient
from qvmi.gdbstub.memory import MemoryRead
from qvmi.gdbstub.packets import StopReply, ThreadId, monitor_request
from qvmi.gdbstub.rsp import frame
from tests.asynchronous import asynchronous
from tests.guests.multiboot import COUNTS_AT
from tests.unit.gdbstub.scripted_stub import recorded, scripted
from tests.unit.qmp.scripted_server import served, watched_loop
from tests.wire.stub_transcript import STUB_NAMES, StubTranscript

LOOP = Va(0x100025)
HERE = MemoryRead(LOOP, 4)
CODE = b"\xff\x00\xeb\xfc"
STOPPED = frame(b"T02thread:p01.01;")
FIRST = ThreadId(1, 1)


@pytest.mark.parametrize("name", [name for name in STUB_NAMES if "x86_64" in name])
@asynchronous
async def test_a_recorded_guest_that_ran_is_left_running(name: str) -> None:
    asked: list[bytes] = []
    told = StubTranscript.load(name).greeting

    def note(request: bytes) -> None:
        asked.append(request)

    async with (
        watched_loop(),
        served(scripted(note, name=name)) as path,
        await GdbClient.connect(path) as client,
    ):
        assert client.was_running is (True if told else None)
        vcpu = await client.registers.read(FIRST)
        assert (vcpu["rax"], vcpu["rip"]) == (COUNTS_AT, LOOP)
        assert await client.read_virtual(LOOP, 4) == CODE
    assert asked[-3:] == [b"Qqemu.PhyMemMode:0", b"?", b"D;1"]


@asynchronous
async def test_a_recorded_guest_that_stood_is_left_standing() -> None:
    asked: list[bytes] = []

    def note(request: bytes) -> None:
        asked.append(request)

    async with (
        watched_loop(),
        served(scripted(note, name="stub_aarch64")) as path,
        await GdbClient.connect(path) as client,
    ):
        assert client.was_running is False
    assert asked[-2:] == [b"Qqemu.PhyMemMode:0", b"?"]


@asynchronous
async def test_a_newer_qemu_does_not_tell_whether_the_guest_ran() -> None:
    version = b"+" + frame(b"O" + b"9.2.0".hex().encode()) + frame(b"OK")

    def answer(request: bytes) -> bytes | None:
        return version if request == monitor_request("info version") else None

    stub = scripted(answer, name="stub_aarch64")
    async with watched_loop(), served(stub) as path, await GdbClient.connect(path) as client:
        assert client.was_running is None
    async with (
        watched_loop(),
        served(stub) as path,
        await GdbClient.connect(path, was_running=False) as client,
    ):
        assert client.was_running is False


@asynchronous
async def test_a_stop_reply_that_nobody_asked_for_shifts_no_reply() -> None:
    def answer(request: bytes) -> bytes | None:
        return STOPPED + b"+" + frame(CODE.hex().encode()) if request[:1] == b"m" else None

    async with (
        watched_loop(),
        served(scripted(answer)) as path,
        await GdbClient.connect(path) as client,
    ):
        for _ in range(3):
            assert await client.read_virtual(LOOP, 4) == CODE
            assert await client.next_stop() == StopReply(2, FIRST)


@asynchronous
async def test_a_request_that_was_lost_is_told_and_shifts_no_reply() -> None:
    numbers = count()

    def answer(request: bytes) -> bytes | None:
        # As QEMU 7.2 does when somebody else has let the guest run: the first packet only stops it.
        lost = request == b"Qqemu.PhyMemMode:0" and next(numbers) in {1, 3}
        return STOPPED if lost else None

    async with (
        watched_loop(),
        served(scripted(answer)) as path,
        await GdbClient.connect(path) as client,
    ):
        for _ in range(2):
            with pytest.raises(GuestRunning, match="somebody let the guest run"):
                await client.read_virtual(LOOP, 4)
            assert await client.read_virtual(LOOP, 4) == CODE


@pytest.mark.parametrize("name", [name for name in STUB_NAMES if "x86_64-" in name])
@asynchronous
async def test_a_request_that_was_lost_without_a_word_is_told(name: str) -> None:
    numbers = count()

    def answer(request: bytes) -> bytes | None:
        # As QEMU from 8.1 on does when somebody else has let the guest run.
        return b"" if request == b"Qqemu.PhyMemMode:0" and next(numbers) in {1, 3} else None

    async with (
        watched_loop(),
        served(scripted(answer, name=name)) as path,
        await GdbClient.connect(path) as client,
    ):
        for _ in range(2):
            with pytest.raises(GuestRunning, match="somebody let the guest run"):
                await client.read_virtual(LOOP, 4)
            assert await client.read_virtual(LOOP, 4) == CODE


@asynchronous
async def test_a_reply_that_never_comes_shifts_no_reply() -> None:
    numbers = count()

    def answer(request: bytes) -> bytes | None:
        # As QEMU 8.1 does: the guest is stopped, and nothing is said.
        return b"" if request == b"?" and next(numbers) == 1 else None

    loop = asyncio.get_running_loop()
    async with watched_loop(), served(scripted(answer)) as path:
        client = await GdbClient.connect(path)
        _, channel = await loop.create_unix_connection(lambda: Channel("stub"), path)
        assert isinstance(channel, Channel)
        await channel.ask("begin", [b"Qqemu.PhyMemMode:0"])
        with pytest.raises(GdbstubTimeout):
            await channel.ask("why", [b"?"], timeout_s=0.05)
        assert await channel.ask("read", [b"m100025,4"]) == [CODE.hex().encode()]
        await channel.close()
        await client.detach()


@asynchronous
async def test_the_descriptions_registers_are_read() -> None:
    values = {0x12: 1 << 48, 0x13: 7}

    def answer(request: bytes) -> bytes | None:
        if request.startswith(b"qsThreadInfo"):
            return b"+" + frame(b"l")
        if request[:1] == b"p" and len(request) > 2:
            value = values.get(int(request[1:], 16), 0x1122)
            return b"+" + frame(value.to_bytes(8, "little").hex().encode())
        return None

    async with (
        watched_loop(),
        served(scripted(answer, name="stub_aarch64")) as path,
        await GdbClient.connect(path) as client,
    ):
        assert (await client.registers.description()).architecture == "aarch64"
        (vcpu,) = await client.registers.vcpus()
        assert isinstance(vcpu, aarch64.Registers)
        assert (vcpu.index, vcpu.ttbr1_el1, vcpu.tcr_el1) == (0, 0x1122, 0x1122)
        with pytest.raises(UsageError, match="no register 'cr3'"):
            await client.registers.read_named(FIRST, ["cr3"])


def pattern(at: int, size: int) -> bytes:
    return bytes((place * 7 + (place >> 8)) & 0xFF for place in range(at, at + size))


@asynchronous
async def test_one_bad_range_of_many_takes_no_other_with_it() -> None:
    def answer(request: bytes) -> bytes | None:
        if request[:1] != b"m":
            return None
        at, size = (int(number, 16) for number in request[1:].split(b","))
        if at <= 0x5000 < at + size or 0x5000 <= at < 0x6000:
            return b"+" + frame(b"E14")
        return b"+" + frame(pattern(at, size).hex().encode())

    sizes = [1, 8, 2048, 2049, 5000]
    reads = [MemoryRead(page * 0x1000 - 3, size) for page in range(1, 9) for size in sizes]
    async with (
        watched_loop(),
        served(scripted(answer)) as path,
        await GdbClient.connect(path) as client,
    ):
        found = await client.read_many_virtual(reads)
    for read, one in zip(reads, found, strict=True):
        end = read.address + read.size
        if read.address < 0x6000 and end > 0x5000:
            assert isinstance(one, MemoryFault)
            assert (one.address, one.size) == (max(read.address, 0x5000), read.size)
        else:
            assert one == pattern(read.address, read.size)


@pytest.mark.parametrize(
    "read", [MemoryRead(0, 0), MemoryRead(-1, 8), MemoryRead((1 << 64) - 4, 8)]
)
@asynchronous
async def test_what_is_no_range_is_not_asked_for(read: MemoryRead) -> None:
    async with watched_loop(), served(recorded()) as path, await GdbClient.connect(path) as client:
        with pytest.raises(UsageError, match="no range"):
            await client.read_many_physical([read])


@asynchronous
async def test_a_breakpoint_that_the_stub_refuses_is_not_remembered() -> None:
    def answer(request: bytes) -> bytes | None:
        return b"+" + frame(b"E22") if request[:1] == b"Z" else None

    async with (
        watched_loop(),
        served(scripted(answer)) as path,
        await GdbClient.connect(path) as client,
    ):
        with pytest.raises(GdbstubRequestFailed, match="Z0,100025,1"):
            await client.insert(Breakpoint(LOOP))
        assert client.breakpoints == frozenset()


@asynchronous
async def test_letting_the_guest_run_may_be_refused() -> None:
    def answer(request: bytes) -> bytes | None:
        return b"+" + frame(b"E22") if request.startswith(b"vCont") else None

    async with (
        watched_loop(),
        served(scripted(answer)) as path,
        await GdbClient.connect(path) as client,
    ):
        await client.resume()
        with pytest.raises(GdbstubRequestFailed, match="vCont"):
            await client.next_stop()
        assert not client.running
        assert await client.read_virtual(LOOP, 4) == CODE


@asynchronous
async def test_a_flood_of_stops_is_bounded_and_counted() -> None:
    def answer(request: bytes) -> bytes | None:
        return STOPPED * 1000 if request.startswith(b"vCont") else None

    async with (
        watched_loop(),
        served(scripted(answer)) as path,
        await GdbClient.connect(path) as client,
    ):
        await client.resume()
        await client.next_stop()
        assert await client.read_virtual(LOOP, 4) == CODE
        assert client.stops_lost >= 900


@asynchronous
async def test_a_stub_that_closes_ends_every_wait() -> None:
    async def handle(reader: Reader, writer: Writer) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await recorded()(reader, writer)

    async with watched_loop(), served(handle) as path:
        client = await GdbClient.connect(path)
        await client.resume()
        with pytest.raises(MachineGone, match="waiting for the guest to stop"):
            await client.next_stop()
        assert client.ended


@asynchronous
async def test_a_packet_damaged_on_the_way_ends_the_session() -> None:
    def answer(request: bytes) -> bytes | None:
        return b"+$ff00ebfc#00" if request[:1] == b"m" else None

    async with (
        watched_loop(),
        served(scripted(answer)) as path,
        await GdbClient.connect(path) as client,
    ):
        with pytest.raises(GdbstubProtocolError, match="damaged"):
            await client.read_physical(Pa(LOOP), 4)
        assert client.ended
        with pytest.raises(GdbstubProtocolError):
            await client.read_physical(Pa(LOOP), 4)


@asynchronous
async def test_a_closed_session_says_so() -> None:
    async with watched_loop(), served(recorded()) as path:
        client = await GdbClient.connect(path)
        await client.detach()
        with pytest.raises(UsageError, match="was closed"):
            await client.read_physical(Pa(0), 8)


@pytest.mark.parametrize(
    ("greeting", "told"),
    [
        (b'{"QMP": {}}\r\n', "outside of a packet"),
        (b"QEMU 7.2.22 monitor\r\n(qemu) ", "outside of a packet"),
        (frame(b"hello") * 5, "strange answer"),
        (frame(b"hello"), "does not end in time"),
        (frame(b"") * 5, "not supported"),
        (b"$" + b"0" * 300_000, "longer than"),
    ],
)
@asynchronous
async def test_says_what_it_heard_instead_of_a_stub(greeting: bytes, told: str) -> None:
    async def handle(_: Reader, writer: Writer) -> None:
        writer.write(greeting)
        await asyncio.Event().wait()

    async with watched_loop(), served(handle) as path:
        with pytest.raises(NotGdbstub, match=told):
            await GdbClient.connect(path, timeout_s=1)


@asynchronous
async def test_says_when_nobody_answers() -> None:
    async def handle(_reader: Reader, _writer: Writer) -> None:
        await asyncio.Event().wait()

    async with watched_loop(), served(handle) as path:
        with pytest.raises((GdbstubBusy, NotGdbstub), match=r"says nothing|no answer"):
            await GdbClient.connect(path, timeout_s=0.5)


@asynchronous
async def test_a_server_that_hangs_up_is_no_stub() -> None:
    async def handle(_: Reader, writer: Writer) -> None:
        writer.close()

    async with watched_loop(), served(handle) as path:
        with pytest.raises(NotGdbstub, match="closes the connection"):
            await GdbClient.connect(path)
