"""A capture shows a guest at one moment, however long the walk takes and whatever the guest does."""

import random
import time
from collections.abc import Callable, Iterator
from typing import Final

import pytest

import qvmi
from qvmi.errors import PauseError, UsageError, WalkFailed
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.view import Taken
from tests.guests.lab import Guest
from tests.proofs import proof_size

PAGE: Final = 4096
WALKS: Final = 6
LONG_S: Final = 0.02
"""Longer than a walk takes that is done while the guest stands still, on the fastest machine too."""
SLOW_S: Final = 0.3
"""Longer than a guest may stand still for a walk."""


@pytest.fixture
def stormy(guest: Guest) -> Iterator[Guest]:
    guest.start_storm()
    yield guest
    guest.stop_storm()


def many_times(linux: LinuxGuest) -> list[qvmi.Listing[qvmi.Process]]:
    """This lists the processes again and again, and takes longer than any pause would be."""
    time.sleep(LONG_S)
    return [linux.processes() for _ in range(WALKS)]


def test_a_long_walk_sees_one_moment_too(stormy: Guest, proof_count: Callable[[int], None]) -> None:
    size = proof_size(ci=10, full=100)
    with qvmi.attach_sync(stormy.qmp, use_cache=False) as machine:
        moments = set()
        for _ in range(size):
            first, *others = machine.capture(many_times)
            assert {listing.items for listing in others} == {first.items}
            assert first.provenance.taken is Taken.CAPTURED
            assert first.provenance.retries == 0
            moments.add(first.items)
        assert len(moments) > 1
    assert stormy.monitor.running()
    proof_count(size)


def test_the_guest_runs_while_a_copy_is_walked(guest: Guest) -> None:
    running: list[bool] = []

    def walk(linux: LinuxGuest) -> int:
        found = many_times(linux)
        running.append(guest.monitor.running())
        return len(found)

    with qvmi.attach_sync(guest.qmp, use_cache=False) as machine:
        assert machine.capture(walk) == WALKS
    assert running
    assert all(running)


def test_a_walk_that_reads_something_else_each_time_is_refused(guest: Guest) -> None:
    generator = random.Random(1)

    def walk(linux: LinuxGuest) -> None:
        page = generator.randrange(1 << 14)
        linux.view.memory.read(qvmi.Pa(page * PAGE), PAGE)
        time.sleep(SLOW_S)

    with (
        qvmi.attach_sync(guest.qmp, use_cache=False) as machine,
        pytest.raises(PauseError, match=r"takes \d+ ms.*paused\(\)"),
    ):
        machine.capture(walk)
    assert guest.monitor.running()


@pytest.mark.parametrize("slow_s", [0.0, LONG_S], ids=["in a pause", "over a copy"])
def test_what_a_walk_raises_is_raised_and_the_guest_runs(guest: Guest, slow_s: float) -> None:
    def walk(_: LinuxGuest) -> None:
        time.sleep(slow_s)
        raise WalkFailed("something", "it is no list")

    with (
        qvmi.attach_sync(guest.qmp, use_cache=False) as machine,
        pytest.raises(WalkFailed, match="something"),
    ):
        machine.capture(walk)
    assert guest.monitor.running()


@pytest.mark.parametrize("slow_s", [0.0, 0.02], ids=["in a pause", "over a copy"])
def test_a_walk_that_asks_its_own_machine_is_refused_and_the_guest_runs(
    guest: Guest, slow_s: float
) -> None:
    with qvmi.attach_sync(guest.qmp, use_cache=False) as machine:

        def walk(_: LinuxGuest) -> None:
            time.sleep(slow_s)
            machine.registers()

        with pytest.raises(UsageError, match="must not ask its machine"):
            machine.capture(walk)
        assert guest.monitor.running()
        assert machine.registers()


def test_a_capture_in_a_guest_that_its_owner_paused_leaves_it_so(guest: Guest) -> None:
    guest.monitor.execute("stop")
    try:
        with qvmi.attach_sync(guest.qmp, use_cache=False) as machine:
            found = machine.capture(lambda linux: linux.processes())
        assert (found.provenance.taken, found.provenance.pause_s) == (Taken.CAPTURED, 0.0)
        assert not guest.monitor.running()
    finally:
        guest.monitor.execute("cont")
