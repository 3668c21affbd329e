"""A session does to a real guest what its policy grants, where and for as long as it does, and no more."""

import asyncio
import logging
from pathlib import Path

import pytest

import qvmi
from qvmi.addr import Pa
from qvmi.errors import PolicyDenied
from qvmi.machine.machine import Machine
from qvmi.policy import OBSERVE, AddressRange, Grant, Limits, Policy, Space
from tests.asynchronous import asynchronous
from tests.guests.lab import Guest

SIZE = 0x1000
NOTHING = Policy(frozenset())
LONGER_S = 600.0
"""A block that would last so long is ended by the policy, or the test by its timeout."""


def some_ram(machine: Machine) -> Pa:
    """Two pages of the guest's RAM, above what firmware keeps."""
    return next(Pa(ram.start + 0x10_0000) for ram in machine.memory.ranges if ram.size > 0x40_0000)


async def stay_paused(machine: Machine) -> None:
    async with machine.paused():
        assert not (await machine.run_state()).running
        await asyncio.sleep(LONGER_S)


@asynchronous
async def test_who_may_read_one_page_reads_that_page_as_it_is_and_no_other_byte(
    guest: Guest, profiles: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as whole:
        pa = some_ram(whole)
        limits = Limits(ranges=(AddressRange(Space.PHYSICAL, pa, SIZE),))
        policy = OBSERVE.within(Grant.READ_MEMORY, limits)
        async with whole.paused() as view:
            true = view.memory.read(pa, SIZE)
    async with qvmi.attach(guest.qmp, cache=profiles, policy=policy) as machine:
        async with machine.paused() as view:
            assert view.memory.read(pa, SIZE) == true
        assert list(machine.memory.windows) == []
        with caplog.at_level(logging.INFO, "qvmi.audit"):
            for place, size in [(pa - 1, 1), (pa, SIZE + 1), (pa + SIZE, 1), (0, 8)]:
                with pytest.raises(PolicyDenied, match="outside of its ranges"):
                    machine.memory.read(Pa(place), size)
    assert len([one for one in caplog.records if "refused: read" in one.getMessage()]) == 4


@asynchronous
async def test_who_may_read_a_part_is_not_given_what_is_understood_of_all(
    guest: Guest, profiles: Path, tmp_path: Path
) -> None:
    limits = Limits(ranges=(AddressRange(Space.PHYSICAL, 0, SIZE),))
    policy = OBSERVE.within(Grant.READ_MEMORY, limits)
    async with qvmi.attach(guest.qmp, cache=profiles, policy=policy) as machine:
        with pytest.raises(PolicyDenied, match="understand the guest"):
            _ = machine.guest
        with pytest.raises(PolicyDenied, match="understand the guest"):
            await machine.query(lambda seen: seen.processes())
        with pytest.raises(PolicyDenied, match="understand the guest"):
            await machine.capture(lambda seen: seen.processes())
        with pytest.raises(PolicyDenied, match="understand the guest"):
            machine.drgn()
        with pytest.raises(PolicyDenied, match="dump the guest"):
            await machine.dump(tmp_path / "core", live=True)
        with pytest.raises(PolicyDenied, match="give the guest to gdb"):
            machine.gdb()
        async with machine.paused() as view:
            with pytest.raises(PolicyDenied, match="outside of its ranges"):
                view.memory.read(Pa(SIZE), 8)
            with pytest.raises(PolicyDenied, match="understand the guest"):
                _ = machine.guest
    assert not (tmp_path / "core").exists()


@asynchronous
async def test_who_holds_nothing_can_do_nothing_but_ask_how_the_machine_is(
    guest: Guest, profiles: Path, tmp_path: Path
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles, policy=NOTHING) as machine:
        assert (await machine.run_state()).running
        assert machine.view.vcpus == ()
        with pytest.raises(PolicyDenied, match="read-memory"):
            machine.memory.read(Pa(0), 8)
        with pytest.raises(PolicyDenied, match="read-memory"):
            machine.view.memory.read(Pa(0), 8)
        for asked, grant in [
            (machine.registers(), "read-registers"),
            (machine.system_registers(), "read-registers"),
            (machine.write_physical(Pa(0), b"x"), "write"),
            (machine.write_registers(0, {"rax": 1}), "write"),
            (machine.dump(tmp_path / "core", live=True), "read-memory"),
        ]:
            with pytest.raises(PolicyDenied, match=f"needs grant '{grant}'"):
                await asked
        with pytest.raises(PolicyDenied, match="needs grant 'pause'"):
            async with machine.paused():
                raise AssertionError("it stands still")
        with pytest.raises(PolicyDenied, match="needs grant 'breakpoint'"):
            async with machine.breakpoints("do_exit"):
                raise AssertionError("it waits for hits")


@asynchronous
async def test_a_pause_that_lasts_longer_than_is_granted_is_ended_and_the_guest_runs(
    guest: Guest, profiles: Path
) -> None:
    policy = OBSERVE.within(Grant.PAUSE, Limits(longest_s=0.2))
    async with qvmi.attach(guest.qmp, cache=profiles, policy=policy) as machine:
        with pytest.raises(PolicyDenied, match=r"longer than 0\.2 s"):
            await stay_paused(machine)
        assert (await machine.run_state()).running
        with pytest.raises(PolicyDenied, match="nobody knows"):
            await machine.capture(lambda seen: seen.processes())
        assert (await machine.run_state()).running
    assert guest.truth().processes  # the guest itself answers


@asynchronous
async def test_a_block_keeps_its_own_timeouts_and_errors(guest: Guest, profiles: Path) -> None:
    policy = OBSERVE.within(Grant.PAUSE, Limits(longest_s=LONGER_S))
    async with qvmi.attach(guest.qmp, cache=profiles, policy=policy) as machine:
        with pytest.raises(TimeoutError):
            async with machine.paused(), asyncio.timeout(0):
                await asyncio.sleep(LONGER_S)
        with pytest.raises(ZeroDivisionError):
            async with machine.paused():
                raise ZeroDivisionError
        assert (await machine.run_state()).running


@asynchronous
async def test_more_pauses_than_are_granted_do_not_stop_the_guest(
    guest: Guest, profiles: Path
) -> None:
    policy = OBSERVE.within(Grant.PAUSE, Limits(per_second=0.001))
    async with qvmi.attach(guest.qmp, cache=profiles, policy=policy) as machine:
        async with machine.paused():
            pass
        with pytest.raises(PolicyDenied, match=r"more than 0\.001 times a second"):
            async with machine.paused():
                raise AssertionError("it stands still")


@asynchronous
async def test_a_write_outside_of_its_range_changes_no_byte(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as whole:
        pa = some_ram(whole)
    limits = Limits(ranges=(AddressRange(Space.PHYSICAL, pa, SIZE),))
    policy = OBSERVE.within(Grant.WRITE, limits)
    async with (
        qvmi.attach(guest.qmp, cache=profiles, policy=policy) as machine,
        machine.paused() as view,
    ):
        before = view.memory.read(pa, 2 * SIZE)
        change = bytes([before[0] ^ 1])
        assert (await machine.write_physical(pa, change)).new == change
        with pytest.raises(PolicyDenied, match="outside of its ranges"):
            await machine.write_physical(Pa(pa + SIZE - 1), b"\x01\x02")
        with pytest.raises(PolicyDenied, match="outside of its ranges"):
            await machine.write_registers(0, {"rax": 1})
        await machine.write_physical(pa, before[:1])
        assert view.memory.read(pa, 2 * SIZE) == before
