"""Registers of running and stopped guests over QMP, against QEMU's gdbstub."""

import asyncio
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from qvmi.arch.x86_64 import Registers
from qvmi.qmp import commands
from qvmi.qmp.session import QmpSession
from tests.asynchronous import asynchronous
from tests.guests.bare_qemu import bare_qemu
from tests.guests.gdbstub import stub_registers
from tests.guests.lab import Guest, GuestConfig
from tests.guests.multiboot import halted_program
from tests.guests.pool import GuestPool
from tests.guests.x86_64_vcpus import x86_64_vcpu, x86_64_vcpus

DEADLINE_S = 60


def read(qmp: str) -> tuple[Registers, ...]:
    async def once() -> tuple[Registers, ...]:
        async with await QmpSession.connect(qmp) as session:
            return x86_64_vcpus(await commands.registers(session))

    return asyncio.run(once())


def assert_equal_to_the_stubs(vcpus: tuple[Registers, ...], guest: Guest) -> None:
    expected = stub_registers(guest.monitor, guest.folder, len(vcpus))
    for ours, theirs in zip(vcpus, expected, strict=True):
        mine = asdict(ours)
        compared = {name for name, value in mine.items() if value is not None} & set(theirs)
        assert {name: mine[name] for name in compared} == {name: theirs[name] for name in compared}
        # All that the stub has, but what the human monitor does not print.
        assert set(theirs) - compared == {"kernel_gs_base", "cr8"}
        assert ours.cpl == theirs["cs"] & 3


@pytest.mark.parametrize(
    "config",
    [
        GuestConfig(),
        GuestConfig(machine="pc", cpus=1, cpu_flags="la57=off", append="nokaslr", ram="memfd"),
        GuestConfig(cpus=4, memory_mib=3072, append="pti=on", ram="private"),
    ],
    ids=lambda config: config.name,
)
def test_every_vcpu_has_the_registers_that_the_gdbstub_tells(
    guests: GuestPool, config: GuestConfig
) -> None:
    guest = guests.restore(config)
    guest.monitor.execute("stop")
    vcpus = read(guest.qmp)
    assert [vcpu.index for vcpu in vcpus] == list(range(config.cpus))
    assert all(vcpu.long_mode and vcpu.paging for vcpu in vcpus)
    assert {vcpu.la57 for vcpu in vcpus} == {config.cpu_flags != "la57=off"}
    assert_equal_to_the_stubs(vcpus, guest)


def test_a_vcpu_in_user_mode_is_told(guests: GuestPool) -> None:
    guest = guests.restore(GuestConfig())
    guest.start_spinning()
    for _ in range(100):
        guest.monitor.execute("stop")
        vcpus = read(guest.qmp)
        if any(vcpu.cpl == 3 for vcpu in vcpus):
            break
        guest.monitor.execute("cont")
    assert {vcpu.cpl for vcpu in vcpus} & {3}
    assert_equal_to_the_stubs(vcpus, guest)


@asynchronous
async def test_reading_registers_does_not_stop_the_guest() -> None:
    with bare_qemu("-smp", "2") as machine:
        async with await QmpSession.connect(machine.qmp) as session:
            for _ in range(50):
                await commands.registers(session)
            assert (await commands.run_state(session)).running
            assert set(session.run_state_events.values()) == {0}


@asynchronous
async def test_32_bit_code_has_the_registers_it_has_loaded() -> None:
    loaded = {"eax": 0x80000001, "ebx": 0xB2, "ecx": 0xC3, "edx": 0xD4, "esp": 0x5000}
    with TemporaryDirectory(prefix="qvmi-") as folder:
        program = Path(folder) / "program"
        program.write_bytes(halted_program(loaded))
        with bare_qemu("-machine", "pc", "-kernel", str(program)) as machine:
            async with await QmpSession.connect(machine.qmp) as session:
                async with asyncio.timeout(DEADLINE_S):
                    while (
                        vcpu := x86_64_vcpu((await commands.registers(session))[0])
                    ).rsp != 0x5000:
                        pass
    assert (vcpu.rax, vcpu.rbx, vcpu.rcx, vcpu.rdx) == (0x80000001, 0xB2, 0xC3, 0xD4)
    assert (vcpu.long_mode, vcpu.paging, vcpu.cr0 & 1, vcpu.r8) == (False, False, 1, None)


def test_a_machine_that_has_not_begun_is_at_the_reset_vector() -> None:
    with bare_qemu("-S", "-smp", "3") as machine:
        vcpus = read(machine.qmp)
    # Intel SDM volume 3A, table 9-1: CS selector F000, base FFFF0000, EIP 0000FFF0.
    assert [(vcpu.cs, vcpu.rip) for vcpu in vcpus] == [(0xF000, 0xFFF0)] * 3
    assert [vcpu.halted for vcpu in vcpus] == [False, True, True]
