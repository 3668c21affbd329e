"""The guest that notes what could not be seen in it."""

import pytest

from qvmi.codepacks.observed_guest import MAX_NOTED_GAPS, ObservedGuest
from qvmi.errors import CodepackError, WalkFailed
from qvmi.semantics.guest_os import Gap, GuestOS
from qvmi.testing import FakeGuest, fake_process
from qvmi.view import Provenance, Taken

METHODS = (
    *("processes", "process_ids", "threads", "modules"),
    *("mounts", "open_files", "sockets", "command_lines", "log", "cached_files"),
    *("credentials", "namespaces", "cgroups", "bpf_programs", "system_calls"),
    "settings",
    "interrupts",
    "hooks",
    "module_sightings",
)
OF_ONE = ("mappings", "environment")


def gap(reason: str = "torn") -> Gap:
    return Gap("tasks", None, reason)


def test_is_a_guest_and_gives_what_the_guest_gives() -> None:
    fake = FakeGuest(processes=[fake_process(1)])
    guest: GuestOS = ObservedGuest(fake, "pack")
    assert guest.processes().items == (fake_process(1),)
    assert guest.facts() == fake.guest_facts
    assert fake.calls == ["processes", "facts"]


def test_notes_the_gaps_of_every_listing() -> None:
    fake = FakeGuest()
    fake.show_processes([], gaps=[gap("a")])
    fake.show_process_ids([], gaps=[gap("b")])
    fake.show_threads([], gaps=[gap("c")])
    fake.show_modules([], gaps=[gap("d")])
    guest = ObservedGuest(fake, "pack")
    for method in METHODS[:4]:
        getattr(guest, method)()
    assert [noted.reason for noted in guest.gaps] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("method", [*METHODS[4:], *OF_ONE])
def test_notes_the_gaps_of_what_processes_have(method: str) -> None:
    fake = FakeGuest()
    fake.show(method, [], gaps=[gap("e")])
    guest = ObservedGuest(fake, "pack")
    arguments = [fake_process(1)] if method in OF_ONE else []
    getattr(guest, method)(*arguments)
    assert [noted.reason for noted in guest.gaps] == ["e"]


@pytest.mark.parametrize("method", METHODS)
def test_a_walk_that_failed_is_a_gap_even_if_the_codepack_hides_it(method: str) -> None:
    fake = FakeGuest()
    fake.fail_next(method, WalkFailed("tasks", "a loop"))
    guest = ObservedGuest(fake, "pack")
    with pytest.raises(WalkFailed):
        getattr(guest, method)()
    assert guest.gaps == [Gap("tasks", None, "a loop")]


def test_keeps_a_bounded_number_of_gaps_and_counts_all() -> None:
    fake = FakeGuest()
    fake.show_processes([], gaps=[gap()] * 1000)
    guest = ObservedGuest(fake, "pack")
    guest.processes()
    assert (len(guest.gaps), guest.gap_count) == (MAX_NOTED_GAPS, 1000)


def test_joins_how_the_listings_were_taken() -> None:
    fake = FakeGuest()
    guest = ObservedGuest(fake, "pack")
    assert guest.provenance is None
    fake.provenance = Provenance(Taken.LIVE, at=5.0, epoch=1, retries=2)
    guest.processes()
    fake.provenance = Provenance(Taken.LIVE, at=6.0, epoch=1, retries=3)
    guest.process_ids()
    assert guest.provenance == Provenance(Taken.LIVE, at=5.0, epoch=1, retries=5)


@pytest.mark.parametrize("method", ["facts", *METHODS])
def test_answers_nothing_after_it_was_withdrawn(method: str) -> None:
    fake = FakeGuest()
    guest = ObservedGuest(fake, "pack")
    guest.withdraw()
    with pytest.raises(CodepackError):
        getattr(guest, method)()
    assert fake.calls == []
