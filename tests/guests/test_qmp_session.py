"""QMP sessions with real QEMUs: what is told when there is none, and what ends one."""

import asyncio
import os
import signal
import socket
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from qvmi.errors import (
    MachineGone,
    NotQmp,
    QmpBusy,
    QmpCommandFailed,
    QmpTimeout,
    SocketUnreachable,
)
from qvmi.host.address import TcpAddress, UnixAddress
from qvmi.machine.find import SocketState, find_machines
from qvmi.qmp import commands
from qvmi.qmp.address import LibvirtAddress
from qvmi.qmp.concurrency import concurrently
from qvmi.qmp.events import Reset, Resume, Stop
from qvmi.qmp.libvirt import LibvirtSession
from qvmi.qmp.session import QmpSession
from tests.asynchronous import asynchronous
from tests.guests.bare_qemu import bare_qemu
from tests.guests.stub_machines import tells_of_a_stop
from tests.unit.qmp.fake_virsh import install_fake_virsh
from tests.unit.qmp.scripted_server import watched_loop

STUCK_S = 0.5


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@asynchronous
async def test_several_commands_at_once_are_answered() -> None:
    with bare_qemu("-smp", "2") as machine:
        async with watched_loop(), await QmpSession.connect(machine.qmp) as session:
            async with concurrently() as group:
                vcpus = group.create_task(commands.registers(session))
                memory_map = group.create_task(commands.memory_map(session))
                state = group.create_task(commands.run_state(session))
                listed = group.create_task(commands.vcpus(session))
                version = group.create_task(commands.version(session))
            assert [vcpu.index for vcpu in vcpus.result()] == [0, 1]
            assert [vcpu.cpu_index for vcpu in listed.result()] == [0, 1]
            assert memory_map.result().ram
            assert state.result() == commands.RunState("running", running=True)
            assert version.result() == session.version
            assert session.peer_pid() == machine.pid


@asynchronous
async def test_a_tcp_port_leads_to_the_same_qemu() -> None:
    port = free_port()
    with bare_qemu("-qmp", f"tcp:127.0.0.1:{port},server=on,wait=off", qmp=False) as machine:
        async with watched_loop(), await QmpSession.connect(f"localhost:{port}") as session:
            assert (await commands.run_state(session)).running
            assert session.peer_pid() == machine.pid


@asynchronous
async def test_stop_and_cont_are_seen_as_events() -> None:
    with bare_qemu() as machine:
        async with watched_loop(), await QmpSession.connect(machine.qmp) as session:
            with session.events() as events:
                await commands.stop(session)
                assert isinstance(await anext(events), Stop)
                assert not machine.monitor.running()
                await commands.cont(session)
                assert isinstance(await anext(events), Resume)
                assert machine.monitor.running()
                machine.monitor.execute("system_reset")
                reset = await anext(events)
                assert isinstance(reset, Reset)
                assert reset.reason == "host-qmp-system-reset"
            assert session.run_state_events["RESET"] == 1


@asynchronous
async def test_a_second_client_is_told_who_holds_the_socket() -> None:
    with bare_qemu() as machine:
        async with watched_loop(), await QmpSession.connect(machine.qmp) as first:
            with pytest.raises(QmpBusy, match="held by this very process"):
                await QmpSession.connect(machine.qmp)
            assert (await commands.run_state(first)).running
        async with await QmpSession.connect(machine.qmp) as next_one:
            assert (await commands.run_state(next_one)).running


@asynchronous
async def test_a_gdbstub_given_by_mistake_leaves_its_guest_running() -> None:
    with TemporaryDirectory(prefix="qvmi-") as folder:
        stub = f"{folder}/gdb"
        with bare_qemu("-gdb", f"unix:{stub},server=on,wait=off") as machine:
            async with watched_loop():
                with pytest.raises(NotQmp, match="gdbstub"):
                    await QmpSession.connect(stub)
                assert machine.monitor.running()


@asynchronous
async def test_a_gdbstub_given_by_mistake_leaves_its_guest_paused_where_it_tells() -> None:
    with TemporaryDirectory(prefix="qvmi-") as folder:
        stub = f"{folder}/gdb"
        with bare_qemu("-gdb", f"unix:{stub},server=on,wait=off") as machine:
            told = tells_of_a_stop(stub)
            machine.monitor.execute("stop")
            async with watched_loop():
                with pytest.raises(NotQmp, match=r"gdbstub.*its QMP is at"):
                    await QmpSession.connect(stub)
                # Where a stub does not tell of a stop, a guest is rather let run than left standing.
                assert machine.monitor.running() is not told


@asynchronous
async def test_a_human_monitor_is_told_from_qmp() -> None:
    port = free_port()
    with bare_qemu("-monitor", f"tcp:127.0.0.1:{port},server=on,wait=off"):
        async with watched_loop():
            with pytest.raises(NotQmp, match="human monitor"):
                await QmpSession.connect(f"127.0.0.1:{port}")


@asynchronous
async def test_nothing_is_written_to_a_guests_serial_port() -> None:
    with TemporaryDirectory(prefix="qvmi-") as folder:
        serial = f"{folder}/serial"
        with bare_qemu("-serial", f"unix:{serial},server=on,wait=off") as machine:
            async with watched_loop():
                with pytest.raises(NotQmp, match=f"character device.*{machine.qmp}"):
                    await QmpSession.connect(serial)


@asynchronous
async def test_a_stopped_qemu_is_told_in_time() -> None:
    with bare_qemu() as machine:
        with machine.stopped():
            async with watched_loop():
                with pytest.raises(QmpBusy, match="it is stopped, or hangs"):
                    await QmpSession.connect(machine.qmp, timeout_s=STUCK_S)
        async with watched_loop(), await QmpSession.connect(machine.qmp) as session:
            assert (await commands.run_state(session)).running


@asynchronous
async def test_a_command_to_a_stopped_qemu_times_out_and_later_ones_work() -> None:
    with bare_qemu() as machine:
        async with watched_loop(), await QmpSession.connect(machine.qmp) as session:
            assert (await commands.run_state(session)).running
            with machine.stopped(), pytest.raises(QmpTimeout):
                await session.execute("query-status", timeout_s=STUCK_S)
            assert (await commands.run_state(session)).running


@asynchronous
async def test_a_qemu_killed_in_mid_command_is_gone_for_everyone() -> None:
    with bare_qemu() as machine:
        async with watched_loop(), await QmpSession.connect(machine.qmp) as session:
            with session.events() as events:
                with machine.stopped():
                    waiting = [asyncio.create_task(session.hmp("info mtree -f")) for _ in range(9)]
                    listening = asyncio.ensure_future(anext(events))
                    await asyncio.sleep(0)
                    os.kill(machine.pid, signal.SIGKILL)
                ends = await asyncio.gather(*waiting, listening, return_exceptions=True)
            assert {type(end) for end in ends} == {MachineGone}
            with pytest.raises(MachineGone, match="query-status"):
                await session.execute("query-status")
        with pytest.raises(SocketUnreachable):
            await QmpSession.connect(machine.qmp)


@asynchronous
async def test_a_qemu_that_quits_is_gone() -> None:
    with bare_qemu() as machine:
        async with watched_loop(), await QmpSession.connect(machine.qmp) as session:
            await session.execute("quit")
            assert machine.process.wait_for_end(10)
            with pytest.raises(MachineGone):
                await session.execute("query-status")
            assert session.run_state_events["SHUTDOWN"] == 1


@asynchronous
async def test_refusals_of_both_monitors_are_told_in_qemus_words() -> None:
    with bare_qemu() as machine:
        async with watched_loop(), await QmpSession.connect(machine.qmp) as session:
            with pytest.raises(QmpCommandFailed, match="no-such-command has not been found"):
                await session.execute("no-such-command")
            with pytest.raises(QmpCommandFailed, match="unknown command: 'bogus'"):
                await session.hmp("bogus")
            with pytest.raises(QmpCommandFailed, match="unsupported option -z"):
                await session.hmp("info registers -z")


@asynchronous
async def test_a_client_that_only_looks_leaves_the_run_state_alone() -> None:
    with bare_qemu() as machine:
        for command in ("cont", "stop"):
            machine.monitor.execute(command)
            before = machine.monitor.execute("query-status")
            async with watched_loop(), await QmpSession.connect(machine.qmp) as session:
                await commands.memory_map(session)
                await commands.registers(session)
            assert machine.monitor.execute("query-status") == before


@asynchronous
async def test_a_domain_is_reached_through_virsh(monkeypatch: pytest.MonkeyPatch) -> None:
    with bare_qemu("-smp", "2") as machine, TemporaryDirectory(prefix="qvmi-") as folder:
        install_fake_virsh(Path(folder), machine.qmp)
        monkeypatch.setenv("PATH", folder, prepend=os.pathsep)
        address = LibvirtAddress("web")
        async with watched_loop(seconds=60), await LibvirtSession.connect(address) as session:
            assert len(await commands.registers(session)) == 2
            assert (await commands.memory_map(session)).ram
            with pytest.raises(QmpCommandFailed):
                await session.hmp("bogus")


@asynchronous
async def test_find_lists_a_running_qemu_and_whether_it_is_free() -> None:
    with bare_qemu("-name", "found one", "-machine", "pc", "-s") as machine:
        found = {each.process.pid: each for each in find_machines()}[machine.pid]
        assert (found.name, found.machine) == ("found one", "pc")
        assert found.reachable_at == UnixAddress(machine.qmp)
        assert TcpAddress("localhost", 1234) in {each.address for each in found.sockets}
        async with watched_loop(), await QmpSession.connect(machine.qmp):
            found = {each.process.pid: each for each in find_machines()}[machine.pid]
            states = {each.address: each.state for each in found.sockets}
            assert states[UnixAddress(machine.qmp)] is SocketState.BUSY
        assert machine.monitor.running()


def test_a_socket_left_behind_by_a_qemu_is_told() -> None:
    with TemporaryDirectory(prefix="qvmi-") as folder:
        path = f"{folder}/q"
        with bare_qemu("-qmp", f"unix:{path},server=on,wait=off") as machine:
            os.kill(machine.pid, signal.SIGKILL)
            assert machine.process.wait_for_end(10)
        assert Path(path).is_socket()
        with pytest.raises(SocketUnreachable, match="the QEMU that made it has ended"):
            asyncio.run(QmpSession.connect(path))
