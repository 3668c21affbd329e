"""The manager asks a gate of each codepack's own: its rates, ranges and longest pause count there."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import qvmi
from qvmi.errors import PolicyDenied
from qvmi.manager.control_service import ControlService
from qvmi.manager.manager import manage
from qvmi.policy import OBSERVE, READ_ONLY, AddressRange, Grant, Limits, Policy, Space
from tests.asynchronous import asynchronous, until
from tests.guests.lab import Guest, GuestConfig, Lab
from tests.guests.managed import NOISY
from tests.guests.pool import GuestPool

WAIT_S = 100.0
RARELY = Limits(per_second=0.0001)
"""Once, and then not again in any test."""

Told = dict[str, object]


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(GuestConfig("6.1"))


@asynccontextmanager
async def serving(
    guest: Guest, profiles: Path, **policies: Policy
) -> AsyncIterator[ControlService]:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        control = ControlService(machine, policies, lease_s=3600.0)
        try:
            yield control
        finally:
            await control.close()


def refusal(answer: Told) -> str:
    """This is the kind of a refusal; empty for an answer."""
    refused = answer["refusal"]
    return str(refused["kind"]) if isinstance(refused, dict) else ""


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """These are the refusals that the audit log was told."""
    records = (one for one in caplog.records if one.name == "qvmi.audit")
    return [one.getMessage() for one in records if one.getMessage().startswith("refused: ")]


def is_empty(folder: Path) -> bool:
    return not list(folder.iterdir())


@asynchronous
async def test_each_codepack_has_rates_of_its_own(
    guest: Guest, profiles: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rare = READ_ONLY.within(Grant.READ_REGISTERS, RARELY)
    async with serving(guest, profiles, one=rare, other=rare) as control:
        for codepack in ("one", "other"):
            assert not refusal(await control.answer(codepack, {"type": "registers"}))
            await control.forget(codepack)  # as when its process has ended and is started again
            answer = await control.answer(codepack, {"type": "registers"})
            assert refusal(answer) == "PolicyDenied"
            assert not refusal(await control.answer(codepack, {"type": "run-state"}))
    assert said(caplog) == [
        f"refused: codepack {name}: read registers: not granted"
        " (grant 'read-registers': more than 0.0001 times a second)"
        for name in ("one", "other")
    ]


@asynchronous
async def test_a_breakpoint_lies_within_the_ranges_of_its_codepack(
    guest: Guest, profiles: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        start = machine.guest.kernel.image.start
        within = Limits(ranges=(AddressRange(Space.VIRTUAL, start, 16),))
        policy = OBSERVE.within(Grant.BREAKPOINT, within)
        control = ControlService(machine, {"pack": policy})
        question: Told = {"type": "breakpoint", "place": "start", "address": start}
        assert not refusal(await control.answer("pack", question))
        for address, kind in [(start + 16, "PolicyDenied"), (-1, "UsageError")]:
            answer = await control.answer("pack", question | {"address": address})
            assert refusal(answer) == kind
        await control.close()
    (refused,) = said(caplog)
    assert "outside of its ranges: virtual" in refused
    assert guest.monitor.running()


@asynchronous
async def test_a_pause_ends_when_it_has_lasted_as_long_as_is_granted_though_it_is_renewed(
    guest: Guest, profiles: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = OBSERVE.within(Grant.PAUSE, Limits(longest_s=3.0))
    async with serving(guest, profiles, pack=short, other=OBSERVE) as control:
        begun = await control.answer("pack", {"type": "pause"})
        told = begun["told"]
        assert isinstance(told, dict)
        assert not guest.monitor.running()
        assert told["lasts_s"] <= 3.0
        beside = await control.answer("pack", {"type": "pause"})
        assert refusal(beside) == "PolicyDenied", "two pauses in a row would be one that is longer"
        keep: Told = {"type": "keep", "lease": told["lease"]}
        while not refusal(await control.answer("pack", dict(keep))):  # noqa: ASYNC110 - a codepack does
            await asyncio.sleep(0.05)
        await until(guest.monitor.running, within_s=WAIT_S)
        await until(lambda: "longer than 3 s" in said(caplog)[-1], within_s=WAIT_S)
        assert "it pauses the guest already, and may for 3 s at once" in said(caplog)[0]
        later = await control.answer("pack", {"type": "pause"})
        assert not refusal(later)


@asynchronous
async def test_registers_by_the_gdbstub_are_refused_where_a_pause_is_bounded(
    guest: Guest, profiles: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = OBSERVE.within(Grant.PAUSE, Limits(longest_s=3.0))
    async with serving(guest, profiles, pack=short, other=OBSERVE) as control:
        question: Told = {"type": "registers", "system": True}
        assert not refusal(await control.answer("other", question))
        assert refusal(await control.answer("pack", question)) == "PolicyDenied"
    assert "nobody knows whether it takes longer than 3 s" in said(caplog)[-1]


@pytest.mark.parametrize(
    "limits",
    [
        Limits(ranges=(AddressRange(Space.PHYSICAL, 0x1000, 0x1000),)),
        Limits(bytes_per_second=4096.0),
        None,
    ],
    ids=["a range", "a rate", "nothing"],
)
@asynchronous
async def test_who_may_not_read_all_memory_is_not_given_it_but_refused(
    guest: Guest, profiles: Path, caplog: pytest.LogCaptureFixture, limits: Limits | None
) -> None:
    registers = Policy(frozenset({Grant.READ_REGISTERS}))
    policy = registers if limits is None else registers.within(Grant.READ_MEMORY, limits)
    with tempfile.TemporaryDirectory() as state:
        async with qvmi.attach(guest.qmp, cache=profiles) as machine:
            with pytest.raises(PolicyDenied, match="be given the guest's RAM"):
                async with manage(machine, [replace(NOISY, policy=policy)], state=Path(state)):
                    pytest.fail("it runs")
        assert is_empty(Path(state)), "not even a folder was made for it"
    assert len(said(caplog)) == 1
