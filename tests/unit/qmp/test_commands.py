"""The typed commands, against what a real QEMU answered."""

import json
from typing import Any

import pytest

from qvmi.addr import Pa
from qvmi.errors import MemoryFault, QmpCommandFailed, QmpProtocolError
from qvmi.memory.memory_map import MemoryBackend
from qvmi.qmp import commands
from qvmi.qmp.session import QmpSession
from tests.asynchronous import asynchronous
from tests.unit.qmp.scripted_server import (
    GREETING,
    Handler,
    greeted,
    replayed,
    served,
    watched_loop,
)
from tests.wire.transcript import NAMES, Transcript

GIB = 1 << 30
LARGE = Transcript.load("q35_large")


def altered(transcript: Transcript, change: dict[str, object]) -> Handler:
    """The recorded QEMU, with other values returned by some of its commands."""

    def answer(request: dict[str, Any]) -> bytes:
        line = request["arguments"].get("command-line")
        value = change.get(line or request["execute"])
        if isinstance(value, Exception):
            error = {"class": "GenericError", "desc": str(value)}
            return json.dumps({"error": error, "id": request["id"]}).encode() + b"\n"
        if value is None:
            return transcript.answer(request)
        return json.dumps({"return": value, "id": request["id"]}).encode() + b"\n"

    return greeted(answer)


@asynchronous
async def test_reads_what_qemu_says_of_the_machine() -> None:
    async with (
        watched_loop(),
        served(replayed(Transcript.load("pc_numa"))) as path,
        await QmpSession.connect(path) as session,
    ):
        assert await commands.run_state(session) == commands.RunState("prelaunch", running=False)
        assert await commands.name(session) == ""
        assert await commands.kvm_enabled(session) is False
        assert await commands.architecture(session) == "x86_64"
        first, second = await commands.vcpus(session)
        assert (first.cpu_index, first.qom_path) == (0, "/machine/unattached/device[0]")
        assert (second.cpu_index, second.target) == (1, "x86_64")
        assert first.thread_id > 0


@asynchronous
async def test_the_version_in_the_greeting_is_the_one_that_is_asked_for() -> None:
    async with (
        watched_loop(),
        served(replayed(LARGE)) as path,
        await QmpSession.connect(path) as session,
    ):
        version = await commands.version(session)
        assert session.version == version
        assert str(version) == LARGE.header[0].split()[2]
        assert version.package in LARGE.header[0]


@pytest.mark.parametrize("name", NAMES)
@asynchronous
async def test_reads_registers_and_map_of_every_recorded_machine(name: str) -> None:
    transcript = Transcript.load(name)
    async with (
        watched_loop(),
        served(replayed(transcript)) as path,
        await QmpSession.connect(path) as session,
    ):
        vcpus = await commands.registers(session)
        assert len(vcpus) == len(transcript.returned("query-cpus-fast"))
        memory_map = await commands.memory_map(session)
        sizes = {each["id"]: each["size"] for each in transcript.returned("query-memdev")}
        assert {backend.name: backend.size for backend in memory_map.backends} == sizes


@asynchronous
async def test_tells_what_is_behind_each_piece_of_memory() -> None:
    async with (
        watched_loop(),
        served(replayed(LARGE)) as path,
        await QmpSession.connect(path) as session,
    ):
        found = {backend.name: backend for backend in await commands.memory_backends(session)}
    file, memfd, ram = (f"memory-backend-{kind}" for kind in ("file", "memfd", "ram"))
    assert found == {
        "main": MemoryBackend("/objects/main", file, 6 * GIB, share=True, mem_path="/run/vm/ram"),
        "nv": MemoryBackend("/objects/nv", file, GIB // 8, share=True, mem_path="/run/vm/nv"),
        "hot": MemoryBackend("/objects/hot", memfd, GIB, share=True),
        "own": MemoryBackend("/objects/own", ram, GIB // 2, share=False),
    }


@asynchronous
async def test_counts_the_offset_in_the_file_where_qemu_has_one() -> None:
    def answer(request: dict[str, Any]) -> bytes:
        if request["arguments"].get("property") == "offset":
            return json.dumps({"return": 1 << 20, "id": request["id"]}).encode() + b"\n"
        return LARGE.answer(request)

    async with (
        watched_loop(),
        served(greeted(answer, greeting=of_release(8, 1))) as path,
        await QmpSession.connect(path) as session,
    ):
        found = {backend.name: backend for backend in await commands.memory_backends(session)}
    assert found["main"].file_offset == 1 << 20
    assert found["hot"].file_offset == 0


def of_release(major: int, minor: int) -> bytes:
    """The greeting of another release of QEMU."""
    greeting = json.loads(GREETING)
    greeting["QMP"]["version"]["qemu"] = {"major": major, "minor": minor, "micro": 0}
    return json.dumps(greeting).encode() + b"\n"


@asynchronous
async def test_does_not_ask_a_qemu_without_it_for_the_offset_in_the_file() -> None:
    asked: list[str] = []

    def answer(request: dict[str, Any]) -> bytes:
        asked.append(request["arguments"].get("property", ""))
        return LARGE.answer(request)

    async with (
        watched_loop(),
        served(greeted(answer, greeting=of_release(8, 0))) as path,
        await QmpSession.connect(path) as session,
    ):
        await commands.memory_backends(session)
    assert "mem-path" in asked
    assert "offset" not in asked


@asynchronous
async def test_asks_without_owners_where_qemu_does_not_know_them() -> None:
    refusal = 'mtree: unsupported option -o\r\nTry "help info mtree" for more information\r\n'
    async with (
        watched_loop(),
        served(altered(LARGE, {"info mtree -f -o": refusal})) as path,
        await QmpSession.connect(path) as session,
    ):
        memory_map = await commands.memory_map(session)
    assert [backend.name for backend in memory_map.backends] == ["main", "hot", "own", "nv"]


@asynchronous
async def test_the_host_address_of_guest_memory_is_told() -> None:
    async with (
        watched_loop(),
        served(replayed(LARGE)) as path,
        await QmpSession.connect(path) as session,
    ):
        printed = LARGE.printed("gpa2hva 0x1000")
        assert hex(await commands.gpa2hva(session, Pa(0x1000))) == printed.split()[-1]


@pytest.mark.parametrize(
    ("pa", "why"),
    [(0xFEE00000, "is not RAM"), (0x7000000000, "No memory is mapped")],
)
@asynchronous
async def test_an_address_without_ram_has_no_host_address(pa: int, why: str) -> None:
    async with (
        watched_loop(),
        served(replayed(LARGE)) as path,
        await QmpSession.connect(path) as session,
    ):
        with pytest.raises(MemoryFault, match=why) as caught:
            await commands.gpa2hva(session, Pa(pa))
        assert caught.value.address == pa


@pytest.mark.parametrize(
    "printed",
    [
        "",
        "Host virtual address for 0x0 (x) is 0x",
        "0x7f00\n",
        "Host virtual address for 0x0 is 0x1",
    ],
)
def test_another_answer_to_gpa2hva_is_refused(printed: str) -> None:
    with pytest.raises(QmpProtocolError, match="gpa2hva 0x1000"):
        commands.parse_gpa2hva(Pa(0x1000), printed)


@pytest.mark.parametrize(
    ("call", "command", "value"),
    [
        (commands.run_state, "query-status", {"status": 1, "running": True}),
        (commands.run_state, "query-status", []),
        (commands.vcpus, "query-cpus-fast", [{"cpu-index": 0}]),
        (commands.name, "query-name", "web"),
        (commands.kvm_enabled, "query-kvm", {}),
        (commands.version, "query-version", {"qemu": {"major": 7}}),
        (commands.memory_backends, "query-memdev", [{"id": "main"}]),
        (commands.memory_map, "info mtree -f -o", ["text"]),
        (commands.registers, "info registers -a", "no registers"),
        (commands.memory_backends, "qom-get", 7),
    ],
)
@asynchronous
async def test_an_answer_of_another_form_is_a_protocol_error(
    call: Any,  # noqa: ANN401 - any of the commands
    command: str,
    value: object,
) -> None:
    async with (
        watched_loop(),
        served(altered(LARGE, {command: value})) as path,
        await QmpSession.connect(path) as session,
    ):
        with pytest.raises(QmpProtocolError):
            await call(session)


@asynchronous
async def test_a_refusal_among_several_commands_is_told_alone() -> None:
    async with (
        watched_loop(),
        served(altered(LARGE, {"query-memdev": RuntimeError("not now")})) as path,
        await QmpSession.connect(path) as session,
    ):
        with pytest.raises(QmpCommandFailed, match="query-memdev: not now"):
            await commands.memory_map(session)
        assert (await commands.run_state(session)).status == "prelaunch"
