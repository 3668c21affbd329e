"""Answers that codepacks in one process share."""

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from qvmi.codepacks.observed_guest import ObservedGuest
from qvmi.codepacks.shared_answers import SharedAnswers, question_of
from qvmi.errors import WalkFailed
from qvmi.semantics.guest_os import Gap, Listing, Process
from qvmi.testing import FakeGuest, fake_process

INIT, SHELL = fake_process(1, name="init"), fake_process(2, name="sh")


@pytest.fixture(autouse=True)
def _no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer is too old because the host is busy."""
    monkeypatch.setattr("qvmi.codepacks.shared_answers.SHARED_FOR_S", 1000.0)


def seen_by(guest: FakeGuest, shared: SharedAnswers, name: str, **more: float) -> ObservedGuest:
    return ObservedGuest(guest, name, shared=shared, **more)


def test_what_two_ask_is_read_once_and_noted_by_both() -> None:
    guest, shared = FakeGuest(processes=[INIT]), SharedAnswers()
    guest.show_processes([INIT], gaps=[Gap("tasks", None, "torn")])
    first, second = seen_by(guest, shared, "first"), seen_by(guest, shared, "second")
    assert first.processes() is second.processes()
    assert guest.calls == ["processes"]
    assert (first.gap_count, second.gap_count) == (1, 1)
    assert first.provenance == second.provenance == guest.provenance


def test_who_asks_again_is_told_anew_and_so_is_who_asked_before() -> None:
    guest, shared = FakeGuest(processes=[INIT]), SharedAnswers()
    first, second = seen_by(guest, shared, "first"), seen_by(guest, shared, "second")
    before = first.processes()
    second.processes()
    guest.show_processes([INIT, SHELL])
    assert first.processes().items == (INIT, SHELL)
    assert second.processes().items == (INIT, SHELL)
    assert before.items == (INIT,)
    assert guest.calls == ["processes"] * 2


def test_a_later_look_is_not_given_what_the_one_before_saw() -> None:
    guest, shared = FakeGuest(processes=[INIT]), SharedAnswers()
    seen_by(guest, shared, "pack").processes()
    later = seen_by(guest, shared, "pack", not_before=time.monotonic())
    later.processes()
    assert guest.calls == ["processes"] * 2


def test_an_old_answer_is_not_given_to_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qvmi.codepacks.shared_answers.SHARED_FOR_S", 0.0)
    guest, shared = FakeGuest(processes=[INIT]), SharedAnswers()
    for name in ("first", "second"):
        seen_by(guest, shared, name).processes()
    assert guest.calls == ["processes"] * 2


def test_questions_about_others_and_of_other_guests_are_others() -> None:
    one, other, shared = FakeGuest(processes=[INIT]), FakeGuest(processes=[SHELL]), SharedAnswers()
    seen_by(one, shared, "first").mappings(INIT)
    seen_by(one, shared, "second").mappings(SHELL)
    seen_by(one, shared, "third").mappings(INIT)
    assert one.calls == ["mappings"] * 2
    assert seen_by(one, shared, "fourth").processes().items == (INIT,)
    assert seen_by(other, shared, "fifth").processes().items == (SHELL,)


def test_what_fails_is_asked_again() -> None:
    guest, shared = FakeGuest(processes=[INIT]), SharedAnswers()
    guest.fail_next("processes", WalkFailed("tasks", "it is a loop"))
    with pytest.raises(WalkFailed):
        seen_by(guest, shared, "first").processes()
    assert seen_by(guest, shared, "second").processes().items == (INIT,)


def test_what_is_too_long_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qvmi.codepacks.shared_answers.MAX_ROWS", 1)
    guest, shared = FakeGuest(processes=[INIT, SHELL]), SharedAnswers()
    for name in ("first", "second"):
        seen_by(guest, shared, name).processes()
    assert guest.calls == ["processes"] * 2


def test_who_reads_for_too_long_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qvmi.codepacks.shared_answers.WAIT_S", 0.01)
    guest, shared = FakeGuest(processes=[INIT]), SharedAnswers()
    begun, leave = threading.Event(), threading.Event()

    def hang() -> Listing[Process]:
        begun.set()
        leave.wait(60)
        return guest.processes()

    question = question_of(guest.processes)
    hanging = threading.Thread(
        target=lambda: shared.answer(guest, question, hang, not_before=0.0), daemon=True
    )
    hanging.start()
    assert begun.wait(60)
    try:
        assert seen_by(guest, shared, "other").processes().items == (INIT,)
    finally:
        leave.set()
        hanging.join(60)


@pytest.mark.parametrize(
    ("ask", "is_known"),
    [
        (FakeGuest().processes, True),
        (partial(FakeGuest().mappings, INIT), True),
        (partial(FakeGuest().mappings, None), True),
        (lambda: None, False),
        (partial(print, [1]), False),
    ],
)
def test_only_what_can_be_told_apart_is_shared(ask: Callable[[], Any], *, is_known: bool) -> None:
    assert (question_of(ask) is not None) == is_known


@pytest.mark.parametrize(
    ("listing", "about"),
    [
        *((name, ()) for name in ("processes", "process_ids", "threads", "modules", "mounts")),
        *((name, ()) for name in ("open_files", "sockets", "mappings", "command_lines", "log")),
        *((name, ()) for name in ("credentials", "namespaces", "cgroups", "bpf_programs")),
        *((name, (INIT,)) for name in ("environment", "stack", "mappings", "open_files")),
        ("cached_files", ("/etc",)),
    ],
)
def test_listings_of_the_interface_are_shared(listing: str, about: tuple[object, ...]) -> None:
    guest, shared = FakeGuest(processes=[INIT]), SharedAnswers()
    for pack in ("first", "second"):
        getattr(seen_by(guest, shared, pack), listing)(*about)
    assert guest.calls == [listing]
