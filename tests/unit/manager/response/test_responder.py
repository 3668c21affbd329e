"""An alert that is told again leads to no second run of a playbook, and one that comes back to another."""

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from qvmi.bus.local import in_process
from qvmi.bus.message import Message
from qvmi.codepacks.alert import Alert
from qvmi.manager.response.journal import Journal
from qvmi.manager.response.playbook import Playbook, When
from qvmi.manager.response.records import RESPONSE, Outcome, Record
from qvmi.manager.response.responder import Responder
from qvmi.manager.response.steps import Say
from qvmi.policy import READ_ONLY
from qvmi.testing import FakeMachine
from tests.asynchronous import asynchronous, until
from tests.unit.manager.response.alerts import alert

BOOK = Playbook("book", When(codepack="one"), (Say("it happened"),), at_most_per_hour=3)
MARK = Playbook(
    "mark", When(codepack="mark"), (Say("all before it was heard"),), at_most_per_hour=60
)
AT = 1764444553.1234567
"""A time as ``time.time`` gives them."""

FIRST, SECOND, THIRD = (alert(first_seen=AT + since) for since in (0.0, 10.1, 20.2))
GONE = alert(cleared=True)


class WithoutQemu(FakeMachine):
    """This is a machine of whose QEMU nothing is asked."""

    monitor = None


@asynccontextmanager
async def hearing(
    path: Path | None, books: Sequence[Playbook] = (BOOK,)
) -> AsyncIterator[tuple[Responder, list[Record]]]:
    """This acts on what it is told for as long as the block lasts; without a journal it is a dry run."""
    told: list[Record] = []
    machine: Any = WithoutQemu()

    def tell(message: Message) -> None:
        if message.kind == RESPONSE:
            told.append(message.read_body(Record))

    journal = None if path is None else Journal(path)
    try:
        responder = Responder(
            machine, (*books, MARK), vm="web", policy=READ_ONLY, journal=journal, tell=tell
        )
        async with in_process([responder.account]) as channel:
            running = asyncio.create_task(responder.run(channel))
            try:
                yield responder, told
            finally:
                running.cancel()
                await asyncio.wait({running})
    finally:
        if journal is not None:
            journal.close()


async def outcomes(
    path: Path | None, *said: Alert, books: Sequence[Playbook] = (BOOK,)
) -> list[Outcome]:
    """These are what one responder has told of the playbook, of all that was said."""
    async with hearing(path, books) as (responder, told):
        last = alert("mark", first_seen=time.time(), key=f"{time.time_ns()}")
        for one in (*said, last):
            body: dict[str, object] = msgspec.to_builtins(one)
            responder.take(
                Message(vm="web", codepack=one.codepack, kind=one.state, time=AT, body=body)
            )
        await until(lambda: any((one.playbook, one.step) == ("mark", 1) for one in told))
    return [one.outcome for one in told if one.playbook == "book"]


@asynchronous
async def test_what_is_told_again_leads_to_no_second_run_and_what_comes_back_does_across_restarts(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal"
    assert await outcomes(path, FIRST, FIRST) == [Outcome.DONE]
    assert await outcomes(path, FIRST, SECOND) == []  # it stands: its codepack has forgotten that
    assert await outcomes(path, GONE, GONE, FIRST) == []
    assert await outcomes(path, FIRST, THIRD, THIRD) == [Outcome.DONE]
    assert await outcomes(path, THIRD, GONE) == []
    with Journal(path) as journal:
        of_book = [run for run in journal.runs.values() if run.playbook == "book"]
    assert [run.cleared for run in of_book] == [[("one", "k")]] * 2
    assert path.read_bytes().count(b'"cleared","run"') == 2


@asynchronous
async def test_a_dry_run_tells_of_each_episode_once() -> None:
    expected = [Outcome.WOULD_DO] * 2
    assert await outcomes(None, FIRST, FIRST, GONE, FIRST, SECOND, THIRD) == expected


@asynchronous
async def test_an_hours_limit_holds_for_one_that_comes_back_without_end_also_after_a_restart(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal"
    flood = [alert(first_seen=AT + at // 2, cleared=bool(at % 2)) for at in range(10)]
    left_out = [Outcome.LEFT_OUT] * 2
    assert await outcomes(path, *flood) == [*[Outcome.DONE] * 3, *left_out]
    assert await outcomes(path, alert(first_seen=AT + 99.0)) == [Outcome.LEFT_OUT]


@asynchronous
async def test_what_is_cleared_while_its_playbook_is_not_there_may_come_back(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal"
    assert await outcomes(path, FIRST) == [Outcome.DONE]
    assert await outcomes(path, GONE, books=()) == []
    assert await outcomes(path, SECOND) == [Outcome.DONE]


@asynchronous
async def test_a_clearance_that_cannot_be_noted_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def full_for_clearances(file: int, data: bytes) -> int:
        if b'"cleared","run"' in data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data)

    monkeypatch.setattr(os, "write", full_for_clearances)
    said = (FIRST, GONE, SECOND)
    assert await outcomes(tmp_path / "journal", *said) == [Outcome.DONE] * 2
