"""QMP through virsh: what is run, what is made of its answers and failures, and that it ends."""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from qvmi.errors import (
    MachineGone,
    QmpCommandFailed,
    QmpProtocolError,
    QmpTimeout,
    SocketUnreachable,
    UsageError,
)
from qvmi.host.host_process import host_process
from qvmi.qmp import commands
from qvmi.qmp.address import LibvirtAddress
from qvmi.qmp.libvirt import LibvirtSession
from qvmi.qmp.monitor import QemuVersion
from tests.asynchronous import asynchronous
from tests.unit.qmp.fake_virsh import install_fake_virsh
from tests.unit.qmp.scripted_server import replayed, served, watched_loop
from tests.wire.transcript import Transcript

WEB = LibvirtAddress("web 1;'$(x)", "qemu:///system")
VERSION = QemuVersion(7, 2, 22)


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with TemporaryDirectory(prefix="qvmi-") as name:
        monkeypatch.setenv("PATH", name, prepend=os.pathsep)
        yield Path(name)


def runs(log: Path) -> list[list[Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


@asynchronous
async def test_asks_qemu_through_the_monitor_command(folder: Path) -> None:
    async with watched_loop(), served(replayed(Transcript.load("q35"))) as path:
        log = install_fake_virsh(folder, path)
        async with await LibvirtSession.connect(WEB) as session:
            assert session.version.major == 7
            assert session.target == "libvirt:qemu:///system/web 1;'$(x)"
            assert len(await commands.registers(session)) == 2
            assert (await commands.memory_map(session)).ram[0].name == "pc.ram"
    _, arguments, language = runs(log)[0]
    assert arguments[:6] == [
        *("--connect", "qemu:///system", "--quiet"),
        *("qemu-monitor-command", "--domain", "web 1;'$(x)"),
    ]
    assert json.loads(arguments[6]) == {"execute": "query-version", "arguments": {}}
    assert language == "C"


@asynchronous
async def test_a_domain_alone_leaves_the_choice_of_libvirt_to_virsh(folder: Path) -> None:
    async with watched_loop(), served(replayed(Transcript.load("q35"))) as path:
        log = install_fake_virsh(folder, path)
        await (await LibvirtSession.connect(LibvirtAddress("web"))).close()
    assert runs(log)[0][1][:4] == ["--quiet", "qemu-monitor-command", "--domain", "web"]


@pytest.mark.parametrize(
    ("address", "told"),
    [
        (LibvirtAddress("missing"), "failed to get domain 'missing'"),
        (LibvirtAddress("off"), "domain is not running"),
        (LibvirtAddress("x", "qemu:///nowhere"), "failed to connect to the hypervisor"),
        (LibvirtAddress("garbage"), "no JSON"),
        (LibvirtAddress("noisy"), "more than"),
        (LibvirtAddress("complaining"), "more than"),
        (LibvirtAddress("silent"), "within 0.5 s"),
    ],
)
@asynchronous
async def test_no_session_with_what_virsh_cannot_reach(
    folder: Path, address: LibvirtAddress, told: str
) -> None:
    install_fake_virsh(folder, "/nowhere")
    async with watched_loop():
        with pytest.raises(SocketUnreachable, match=told):
            await LibvirtSession.connect(address, timeout_s=0.5 if told.startswith("w") else 10)


@asynchronous
async def test_without_virsh_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    async with watched_loop():
        with pytest.raises(SocketUnreachable, match="install libvirt-clients"):
            await LibvirtSession.connect(WEB)


@pytest.mark.parametrize(
    ("domain", "error"),
    [
        ("off", MachineGone),
        ("missing", MachineGone),
        ("garbage", QmpProtocolError),
        ("noisy", QmpProtocolError),
        ("silent", QmpTimeout),
    ],
)
@asynchronous
async def test_a_failing_command_has_the_documented_error(
    folder: Path, domain: str, error: type[Exception]
) -> None:
    install_fake_virsh(folder, "/nowhere")
    session = LibvirtSession(LibvirtAddress(domain), VERSION)
    async with watched_loop():
        with pytest.raises(error):
            await session.execute("query-status", timeout_s=0.5)


@asynchronous
async def test_a_refusal_of_qemu_is_told_in_its_words(folder: Path) -> None:
    async with watched_loop(), served(replayed(Transcript.load("q35"))) as path:
        install_fake_virsh(folder, path)
        session = LibvirtSession(WEB, VERSION)
        with pytest.raises(QmpCommandFailed, match="no-such-command has not been found"):
            await session.execute("no-such-command")


@asynchronous
async def test_a_virsh_that_is_not_waited_for_any_more_is_killed(folder: Path) -> None:
    log = install_fake_virsh(folder, "/nowhere")
    session = LibvirtSession(LibvirtAddress("silent"), VERSION)
    async with watched_loop():
        with pytest.raises(QmpTimeout):
            await session.execute("query-status", timeout_s=0.5)
    (pid, _, _) = runs(log)[0]
    assert host_process(pid) is None


@asynchronous
async def test_few_processes_run_at_once_and_all_are_answered(folder: Path) -> None:
    async with watched_loop(seconds=60), served(replayed(Transcript.load("q35"))) as path:
        install_fake_virsh(folder, path)
        session = LibvirtSession(WEB, VERSION)
        states = await asyncio.gather(*(commands.run_state(session) for _ in range(12)))
        assert {state.status for state in states} == {"prelaunch"}


@asynchronous
async def test_there_are_no_events_and_that_is_said() -> None:
    session = LibvirtSession(WEB, VERSION)
    assert session.run_state_events == {}
    with pytest.raises(UsageError, match="query-status"):
        session.events()


@asynchronous
async def test_nothing_is_asked_after_the_end() -> None:
    session = LibvirtSession(WEB, VERSION)
    await session.close()
    with pytest.raises(UsageError, match="was closed"):
        await session.execute("query-status")


@asynchronous
async def test_arguments_that_json_cannot_hold_are_refused() -> None:
    with pytest.raises(UsageError):
        await LibvirtSession(WEB, VERSION).execute("x", {"y": object()})


@asynchronous
async def test_a_domain_of_another_host_has_no_process_here() -> None:
    far = LibvirtSession(LibvirtAddress("web", "qemu+ssh://host/system"), VERSION)
    assert far.peer_pid() is None
    assert LibvirtSession(LibvirtAddress("no such domain"), VERSION).peer_pid() is None
