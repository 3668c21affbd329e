"""A qvmi behind the gateways of another: what takes the gdbstub works there as far as it was granted."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

import qvmi
from qvmi.errors import AttachError, WriteFailed
from qvmi.gdbstub.client import GdbClient
from qvmi.policy import OBSERVE, Grant
from tests.asynchronous import asynchronous, until
from tests.command_line import qvmi as qvmi_command
from tests.guests.bare_qemu import BareQemu, bare_qemu
from tests.guests.gateways import Gateway, RawDebugger, RawQmp, gateway, wait_until
from tests.guests.lab import Guest, GuestConfig, Lab
from tests.guests.multiboot import COUNTS_AT
from tests.guests.pool import GuestPool
from tests.guests.stub_machines import counter, counting_machine

FORK: Final = "kernel_clone"
MARK: Final = bytes.fromhex("2123247d2a2b2d03")  # what frames and escapes packets
CHANGE: Final = OBSERVE.plus(Grant.WRITE)


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(GuestConfig(kernel="6.1"))


@pytest.fixture
def bare() -> Iterator[BareQemu]:
    with bare_qemu("-m", "64", "-smp", "2") as qemu:
        yield qemu


def through(gate: Gateway) -> tuple[str, ...]:
    return ("--qmp", gate.qmp, "--gdb", gate.gdb)


def refused(gate: Gateway) -> list[str]:
    """These are the refusals, but for that of a write to a file by which qvmi looks for the RAM."""
    texts = (text for text in gate.audit() if text.startswith("refused"))
    return [text for text in texts if "pmemsave" not in text]


def test_system_registers_are_those_that_the_monitor_tells(guest: Guest) -> None:
    guest.monitor.execute("stop")
    try:
        told = guest.monitor.human("info registers -a")
        with gateway(guest.qmp) as gate:
            done = qvmi_command(*through(gate), "regs", "--system")
            assert refused(gate) == []
        assert not guest.monitor.running(), "its owner has stopped it"
    finally:
        guest.monitor.execute("cont")
    assert done.returncode == 0, done.stderr
    shown = [int(one, 16) for one in re.findall(r"\bcr3 +(0x[0-9a-f]+)", done.stdout)]
    assert shown == [int(one, 16) for one in re.findall(r"CR3=([0-9a-f]+)", told)]


def test_gdb_knows_the_guests_names_and_hits_a_breakpoint(guest: Guest) -> None:
    fork = int(guest.run(f"grep ' {FORK}$' /proc/kallsyms").split()[0], 16)
    guest.start_storm()
    try:
        with gateway(guest.qmp, "--may-break") as gate:
            words = ("info symbol vfs_read", f"break *&{FORK}", "continue", "p/x $pc")
            lines = [word for line in words for word in ("-ex", line)]
            done = qvmi_command(*through(gate), "gdb", "--batch", *lines)
            assert refused(gate) == []
        wait_until(guest.monitor.running, "the guest does not run")
    finally:
        guest.stop_storm()
    assert "vfs_read in section .text" in done.stdout, done.stderr
    assert f"$1 = {fork:#x}" in done.stdout, done.stderr


@asynchronous
async def test_a_breakpoint_tells_of_hits_and_leaves_a_guest_that_runs(guest: Guest) -> None:
    guest.start_storm()
    try:
        with gateway(guest.qmp, "--may-break") as gate:
            async with (
                qvmi.attach(gate.qmp, gdb=gate.gdb) as machine,
                machine.breakpoints(FORK) as hits,
            ):
                first = [await anext(hits) for _ in range(3)]
            assert all(hit.place == FORK for hit in first)
            assert refused(gate) == []
            await until(guest.monitor.running)
    finally:
        guest.stop_storm()


@asynchronous
async def test_a_guest_that_another_client_holds_by_then_stays_so(guest: Guest) -> None:
    with gateway(guest.qmp, "--may-break") as gate, RawQmp.to(gate.qmp) as other:
        other.negotiated()
        async with (
            qvmi.attach(gate.qmp, gdb=gate.gdb) as machine,
            machine.breakpoints(FORK),
        ):
            assert other.execute("stop") == {"return": {}}
        assert not guest.monitor.running()
    await until(guest.monitor.running)


@asynchronous
async def test_physical_memory_is_written_where_that_is_granted_and_nobody_else_sees_it_so(
    bare: BareQemu,
) -> None:
    """0x7c00 is what a debugger without page tables reads at 0x7c00 by its own addresses, too."""
    with gateway(bare.qmp, "--may-write") as gate, RawDebugger.to(gate.gdb) as other:
        assert other.ask(b"?").startswith(b"T05")
        async with qvmi.attach(gate.qmp, gdb=gate.gdb, policy=CHANGE) as machine:
            written = await machine.write_physical(qvmi.Pa(0x500), MARK)
        assert written.new == MARK
        assert other.ask(b"m500,8") == MARK.hex().encode()
        assert other.ask(b"D") == b"OK"
        assert any("writes at physical 0x500" in text for text in gate.audit())
    shown = bare.monitor.human("xp /8xb 0x500")
    assert bytes(int(one, 16) for one in re.findall(r" 0x([0-9a-f]{2})\b", shown)) == MARK
    wait_until(bare.monitor.running, "the machine does not run")


@asynchronous
async def test_nothing_is_written_or_stopped_where_that_is_not_granted(tmp_path: Path) -> None:
    with counting_machine() as machine:
        policy = tmp_path / "policy.toml"
        policy.write_text(
            "version = 1\n[codepacks.gateway]\npause = true\nread-registers = true\n"
            'read-memory = true\nwrite = { physical = ["0x1000+4K"] }\n'
        )
        with gateway(machine.qmp, "--policy", str(policy)) as gate:
            async with qvmi.attach(gate.qmp, gdb=gate.gdb, policy=CHANGE) as attached:
                before = counter(machine)
                with pytest.raises(WriteFailed):
                    await attached.write_physical(qvmi.Pa(COUNTS_AT), bytes(4))
                with pytest.raises(WriteFailed):
                    await attached.write_physical(qvmi.Pa(0x1FFE), bytes(4))
                await attached.write_physical(qvmi.Pa(0x1FFC), MARK[:4])
            assert any("needs" in one or "outside" in one for one in refused(gate))
            await until(machine.monitor.running)
        await until(lambda: counter(machine) > before)
        assert "0x7d242321" in machine.monitor.human("xp /1xw 0x1ffc")


def test_what_was_not_granted_and_where_the_stub_is_are_said(bare: BareQemu) -> None:
    with gateway(bare.qmp) as gate:
        done = qvmi_command(*through(gate), "regs", "--system")
        assert "needs grant 'pause'" in done.stderr
        bare.monitor.execute("stop")
        done = qvmi_command("--qmp", gate.qmp, "regs", "--system")
        assert done.returncode == 2
        assert "name it with --gdb" in done.stderr
        bare.monitor.execute("cont")


@asynchronous
async def test_a_guest_that_may_not_be_stopped_is_not_shown_and_the_reason_is_the_gateways(
    bare: BareQemu,
) -> None:
    with gateway(bare.qmp) as gate:
        with pytest.raises(AttachError, match="needs grant 'pause'"):
            await GdbClient.connect(gate.gdb)
        assert bare.monitor.running()
        assert not bare.monitor.events
