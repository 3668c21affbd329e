"""What is claimed of writes to an x86-64 guest, of aarch64 guests, by the guest's own word.

The claims are the very same functions, with other guests; the registers are aarch64's own.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

import qvmi
from qvmi.errors import UsageError
from tests.asynchronous import asynchronous
from tests.guests.aarch64_guests import NARROW, aarch64
from tests.guests.lab import Guest, Lab
from tests.guests.pool import GuestPool
from tests.guests.test_writing import (
    CHANGE,
    test_a_name_written_into_the_kernel_is_what_proc_tells,
    test_a_page_that_the_process_may_not_write_is_refused,
    test_a_process_that_has_ended_is_not_written_to,
    test_a_range_that_ends_behind_what_is_mapped_is_not_begun,
    test_a_session_that_may_only_read_does_not_even_stop_the_guest,
    test_a_write_across_pages_is_whole_and_leaves_its_neighbours,
    test_arguments_written_into_a_process_are_what_proc_tells,
    test_even_shared_pages_are_written_where_that_is_asked_for,
    test_two_pages_that_are_one_are_told_and_hold_what_they_held,
    test_without_the_grant_nothing_is_written_by_any_way,
)

__all__ = [
    "test_a_name_written_into_the_kernel_is_what_proc_tells",
    "test_a_page_that_the_process_may_not_write_is_refused",
    "test_a_process_that_has_ended_is_not_written_to",
    "test_a_range_that_ends_behind_what_is_mapped_is_not_begun",
    "test_a_session_that_may_only_read_does_not_even_stop_the_guest",
    "test_a_write_across_pages_is_whole_and_leaves_its_neighbours",
    "test_arguments_written_into_a_process_are_what_proc_tells",
    "test_even_shared_pages_are_written_where_that_is_asked_for",
    "test_two_pages_that_are_one_are_told_and_hold_what_they_held",
    "test_without_the_grant_nothing_is_written_by_any_way",
]

WRITTEN = {"x5": 0x4711_0815, "x30": (1 << 64) - 1}


@pytest.fixture(
    scope="module",
    params=[aarch64(), aarch64("7.x-arm64", NARROW)],
    ids=["6.12", "7.x, 48 bits"],
)
def guest(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(request.param)


def told_by_the_monitor(guest: Guest) -> list[dict[str, int]]:
    """These are the general registers of each vCPU, as QEMU prints them for people."""
    text: str = guest.monitor.execute(
        "human-monitor-command", **{"command-line": "info registers -a"}
    )
    vcpus = re.split(r"^CPU#\d+", text, flags=re.MULTILINE)[1:]
    found = (re.findall(r"\bX(\d\d)=([0-9a-f]{16})\b", vcpu) for vcpu in vcpus)
    return [{f"x{int(number)}": int(value, 16) for number, value in vcpu} for vcpu in found]


@asynchronous
async def test_registers_that_are_written_are_those_that_the_monitor_tells(guest: Guest) -> None:
    guest.monitor.execute("stop")
    try:
        before = told_by_the_monitor(guest)
        async with qvmi.attach(guest.qmp, policy=CHANGE) as machine:
            written = await machine.write_registers(1, WRITTEN)
            after = told_by_the_monitor(guest)
            await machine.write_registers(1, written.old)
        assert written.old == {name: before[1][name] for name in WRITTEN}
        assert after == [before[0], before[1] | WRITTEN]
        assert told_by_the_monitor(guest) == before
    finally:
        guest.monitor.execute("cont")


@pytest.mark.parametrize("values", [{"rax": 1}, {"x31": 1}, {"x5": 1 << 64}])
@asynchronous
async def test_a_register_that_cannot_be_is_refused(guest: Guest, values: dict[str, int]) -> None:
    async with qvmi.attach(guest.qmp, policy=CHANGE) as machine:
        with pytest.raises(UsageError, match=r"no register|does not fit"):
            await machine.write_registers(0, values)
    assert guest.monitor.running()


@asynchronous
async def test_a_breakpoint_in_what_is_written_stays_and_is_hit(guest: Guest) -> None:
    guest.start_storm(2)
    try:
        async with qvmi.attach(guest.qmp, policy=CHANGE) as machine:
            start = machine.symbols.find("kernel_clone")
            assert start is not None
            code = machine.kernel_space.read(start, 16)
            async with machine.breakpoints("kernel_clone") as hits:
                await anext(hits)
                written = await machine.write_virtual(start, code)
                assert written.old == written.new == code
                seen = hits.hits
                async for _ in hits:
                    if hits.hits > seen + 2:
                        break
            assert machine.kernel_space.read(start, 16) == code
    finally:
        guest.stop_storm()
    assert guest.monitor.running()
