"""What was done is undone once."""

from pathlib import Path
from typing import Any

import pytest

from qvmi.bus.topic import name_from
from qvmi.cli.respond import respond
from qvmi.cli.responding import opened_journal
from qvmi.errors import UsageError
from qvmi.manager.response.journal import Undo
from qvmi.testing import FakeGuest, FakeMachine
from tests.asynchronous import asynchronous
from tests.unit.cli.streams import Captured
from tests.unit.manager.response.alerts import alert


async def responded(place: Path, machine: object, **words: str | None) -> None:
    its: Any = machine
    more: dict[str, Any] = {"policy": None, "state": str(place)} | words
    await respond(its, Captured(), **more)


@asynchronous
async def test_a_list_takes_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="respond list takes nothing: 'run-1'"):
        await responded(tmp_path, FakeMachine(FakeGuest()), action="list", run="run-1")


@asynchronous
async def test_what_was_undone_is_not_undone_again(tmp_path: Path) -> None:
    machine = FakeMachine(FakeGuest())
    with opened_journal(str(tmp_path), name_from(machine.address)) as journal:
        run = journal.begin("run-1", "book", (alert(),))
        journal.begin_step(run, 1, (Undo(word="nic-up", names=("net0",)),))
        journal.end(run, undone=True)
    with pytest.raises(UsageError, match="run-1 is undone already"):
        await responded(tmp_path, machine, action="undo", run="run-1")
