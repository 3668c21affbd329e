"""What a run notes is noted beside the event loop, whole, and under the right step."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from qvmi.manager.response.actor import Actor
from qvmi.manager.response.journal import Journal
from qvmi.manager.response.playbook import Playbook, When
from qvmi.manager.response.records import Outcome, Record
from qvmi.manager.response.run import PlaybookRun, undo_run
from qvmi.manager.response.steps import Pause, Resume, Say, Step
from qvmi.policy import Grant, Policy, PolicyGate
from qvmi.testing import FakeGuest, FakeMachine
from tests.asynchronous import asynchronous
from tests.unit.manager.response.alerts import alert

TURNS = 50
"""Turns of the event loop in which all is done that waits for nobody."""


class Stoppable(FakeMachine):
    """This is a machine whose guest can stand still; QEMU is not asked for anything."""

    monitor = None

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """This is a pause."""
        yield


def made_actor() -> Actor:
    machine: Any = Stoppable(FakeGuest())
    gate = PolicyGate("response", Policy(frozenset({Grant.PAUSE})))
    return Actor(machine, gate, lambda *_: None)


def made_run(journal: Journal, then: Sequence[Step], tell: Callable[[Record], None]) -> PlaybookRun:
    book = Playbook("book", When(), tuple(then))
    return PlaybookRun(
        book, (alert(),), name="run-1", vm="web", actor=made_actor(), journal=journal, tell=tell
    )


@asynchronous
async def test_a_run_that_goes_on_in_the_second_of_two_equal_pauses_is_in_that_one(
    tmp_path: Path,
) -> None:
    told: list[Record] = []
    with Journal(tmp_path / "journal") as journal:
        noted = journal.begin("run-1", "book", (alert(),))
        for step in (1, 2, 3):
            journal.begin_step(noted, step)
            journal.end_step(noted, step, Outcome.DONE)
        then = (Pause(5.0), Resume(), Pause(5.0), Say("it stands still"), Resume())
        await made_run(journal, then, told.append).go_on(noted)
    assert [(one.step, one.word) for one in told] == [(3, "pause"), (4, "message"), (5, "resume")]
    assert noted.over


@asynchronous
async def test_who_is_cancelled_while_a_step_is_noted_lets_go_of_the_journal_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, begun, go_on = os.fsync, threading.Event(), threading.Event()
    with Journal(tmp_path / "journal") as journal:
        run = made_run(journal, [Say("one"), Say("two")], lambda _: begin_waiting())

        def begin_waiting() -> None:
            monkeypatch.setattr(os, "fsync", wait)

        def wait(file: int) -> None:
            begun.set()
            go_on.wait()
            sync(file)

        playing = asyncio.create_task(run.play())
        try:
            await asyncio.to_thread(begun.wait)  # the second step is being noted
            playing.cancel()
            for _ in range(TURNS):
                await asyncio.sleep(0)
            assert not playing.done()
        finally:
            go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await playing
        noted = journal.runs["run-1"]
        assert (noted.begun, noted.ended, noted.over) == (2, {1: Outcome.DONE}, False)


@asynchronous
async def test_the_event_loop_waits_for_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, threads = os.fsync, set()

    def remember(file: int) -> None:
        threads.add(threading.get_ident())
        sync(file)

    monkeypatch.setattr(os, "fsync", remember)
    with Journal(tmp_path / "journal") as journal:
        run = made_run(journal, [Say("one")], lambda _: None)
        await run.play()
        assert await undo_run(journal.runs["run-1"], made_actor(), journal, lambda _: None)
    assert threads
    assert threading.get_ident() not in threads
