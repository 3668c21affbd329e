"""The gate lets through what the policy grants, where it does, as often and as much as it does."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvmi.errors import PolicyDenied, UsageError
from qvmi.policy import OBSERVE, READ_ONLY, AddressRange, Grant, Limits, Policy, PolicyGate, Space

PAGE = AddressRange(Space.PHYSICAL, 0x1000, 0x1000)


def physical(start: int, size: int) -> AddressRange:
    return AddressRange(Space.PHYSICAL, start, size)


def writer(limits: Limits) -> PolicyGate:
    return PolicyGate("responder", READ_ONLY.within(Grant.WRITE, limits))


@pytest.mark.parametrize("grant", sorted(set(Grant) - READ_ONLY.grants))
def test_a_reader_is_refused_all_else(grant: Grant) -> None:
    with pytest.raises(PolicyDenied) as caught:
        PolicyGate("pack", READ_ONLY).require(grant, "do it", now=0)
    assert (caught.value.grant, caught.value.action) == (grant, "pack: do it")


@pytest.mark.parametrize("grant", sorted(OBSERVE.grants))
def test_what_is_held_without_limits_is_always_let_through(grant: Grant) -> None:
    gate = PolicyGate("pack", OBSERVE)
    for _ in range(1000):
        gate.require(grant, "do it", now=0, place=physical(0, 1 << 64))


@pytest.mark.parametrize(
    ("place", "inside"),
    [
        (physical(0x1000, 0x1000), True),
        (physical(0x1FFF, 1), True),
        (physical(0x0FFF, 1), False),
        (physical(0x0FFF, 2), False),
        (physical(0x1FFF, 2), False),
        (physical(0x2000, 1), False),
        (physical(0, 1 << 64), False),
        (AddressRange(Space.VIRTUAL, 0x1000, 1), False),
        (None, False),
    ],
)
def test_an_access_must_lie_in_a_range_to_its_last_byte(
    place: AddressRange | None,
    inside: bool,  # noqa: FBT001 - a column of the table
) -> None:
    gate = writer(Limits(ranges=(PAGE,)))
    if inside:
        gate.require(Grant.WRITE, "write", now=0, place=place)
    else:
        with pytest.raises(PolicyDenied, match=r"outside of its ranges: physical 0x1000\+0x1000"):
            gate.require(Grant.WRITE, "write", now=0, place=place)


def test_two_ranges_that_touch_do_not_make_one() -> None:
    gate = writer(Limits(ranges=(PAGE, physical(0x2000, 0x1000))))
    with pytest.raises(PolicyDenied, match="outside"):
        gate.require(Grant.WRITE, "write", now=0, place=physical(0x1FF0, 0x20))


def test_times_a_second_are_counted_on_the_clock_that_is_given() -> None:
    gate = writer(Limits(per_second=2))
    for now, allowed in [
        (10, 1),
        (10, 1),
        (10, 0),
        (10.4, 0),
        (10.5, 1),
        (10.6, 0),
        (100, 1),
        (100, 1),
        (100, 0),
    ]:
        if allowed:
            gate.require(Grant.WRITE, "write", now=now)
        else:
            with pytest.raises(PolicyDenied, match="more than 2 times a second"):
                gate.require(Grant.WRITE, "write", now=now)


def test_less_than_once_a_second_is_still_once() -> None:
    gate = writer(Limits(per_second=0.5))
    gate.require(Grant.WRITE, "write", now=0)
    with pytest.raises(PolicyDenied):
        gate.require(Grant.WRITE, "write", now=1.9)
    gate.require(Grant.WRITE, "write", now=4)


def test_what_was_refused_costs_nothing() -> None:
    gate = writer(Limits(ranges=(PAGE,), per_second=1, bytes_per_second=100))
    for place, size in [(physical(0, 1), 1), (PAGE, 101)]:
        with pytest.raises(PolicyDenied):
            gate.require(Grant.WRITE, "write", now=0, place=place, size=size)
    gate.require(Grant.WRITE, "write", now=0, place=PAGE, size=100)


def test_bytes_are_those_of_the_place_unless_told_otherwise() -> None:
    gate = writer(Limits(bytes_per_second=0x1000))
    gate.require(Grant.WRITE, "write", now=0, place=PAGE)
    with pytest.raises(PolicyDenied, match="more than 4096 bytes a second"):
        gate.require(Grant.WRITE, "write", now=0.5, place=PAGE)
    gate.require(Grant.WRITE, "write", now=0.5, place=PAGE, size=0x800)


def test_a_clock_that_goes_back_brings_nothing() -> None:
    gate = writer(Limits(per_second=1))
    gate.require(Grant.WRITE, "write", now=100)
    for now in (50.0, 99.0, 100.5, 51.0, 100.9):
        with pytest.raises(PolicyDenied):
            gate.require(Grant.WRITE, "write", now=now)
    gate.require(Grant.WRITE, "write", now=101)


@given(
    rate=st.floats(0.1, 50),
    steps=st.lists(st.floats(0, 2), min_size=1, max_size=200),
)
def test_no_span_of_time_has_more_than_its_rate_and_one_second_ahead(
    rate: float, steps: list[float]
) -> None:
    gate, now, passed = writer(Limits(per_second=rate)), 0.0, []
    for step in steps:
        now += step
        try:
            gate.require(Grant.WRITE, "write", now=now)
        except PolicyDenied:
            continue
        passed.append(now)
    for first, begin in enumerate(passed):
        for last in range(first, len(passed)):
            assert last - first + 1 <= max(rate, 1) + rate * (passed[last] - begin) + 1e-6


def test_each_grant_has_its_own_rate() -> None:
    policy = OBSERVE.within(Grant.PAUSE, Limits(per_second=1)).within(
        Grant.BREAKPOINT, Limits(per_second=1)
    )
    gate = PolicyGate("", policy)
    gate.require(Grant.PAUSE, "pause", now=0)
    gate.require(Grant.BREAKPOINT, "stop", now=0)
    with pytest.raises(PolicyDenied):
        gate.require(Grant.PAUSE, "pause", now=0)


def test_the_longest_pause_is_told_to_who_stops_the_guest() -> None:
    assert PolicyGate("", OBSERVE).longest_pause_s is None
    limited = OBSERVE.within(Grant.PAUSE, Limits(longest_s=0.25))
    assert PolicyGate("", limited).longest_pause_s == 0.25


def test_every_refusal_is_a_record(caplog: pytest.LogCaptureFixture) -> None:
    gate = writer(Limits(ranges=(PAGE,), per_second=1))
    gate.require(Grant.WRITE, "write", now=0, place=PAGE)
    with caplog.at_level(logging.INFO, "qvmi.audit"):
        for grant, place in [(Grant.NIC, None), (Grant.WRITE, physical(0, 1)), (Grant.WRITE, PAGE)]:
            with pytest.raises(PolicyDenied):
                gate.require(grant, "act", now=0, place=place)
        with pytest.raises(PolicyDenied):
            gate.policy.require(Grant.DISK, "look at the disk")
        with pytest.raises(PolicyDenied, match="only within limits"):
            gate.policy.require_all(Grant.WRITE, "write anywhere")
    assert [record.getMessage() for record in caplog.records] == [
        "refused: responder: act: not granted (needs grant 'nic')",
        "refused: responder: act: not granted (grant 'write': outside of its ranges: physical 0x1000+0x1000)",
        "refused: responder: act: not granted (grant 'write': more than 1 times a second)",
        "refused: look at the disk: not granted (needs grant 'disk')",
        "refused: write anywhere: not granted (grant 'write': it is granted only within limits)",
    ]


@pytest.mark.parametrize("bound", [0, -1, float("nan"), float("inf")])
def test_a_limit_is_a_number_above_0(bound: float) -> None:
    with pytest.raises(UsageError):
        Limits(per_second=bound)
    with pytest.raises(UsageError):
        Limits(bytes_per_second=bound)
    with pytest.raises(UsageError):
        Limits(longest_s=bound)


def test_more_grants_leave_limits_as_they_are() -> None:
    limited = READ_ONLY.within(Grant.WRITE, Limits(per_second=1))
    assert limited.plus(Grant.WRITE, Grant.PAUSE).limits_of(Grant.WRITE).per_second == 1
    assert not limited.plus(Grant.WRITE).allows_all(Grant.WRITE)
    assert Policy(frozenset({Grant.NIC})).allows_all(Grant.NIC)
