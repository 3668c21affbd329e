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


@asynchronous
async def test_what_was_undone_is_not_undone_again(tmp_path: Path) -> None:
    machine: Any = FakeMachine(FakeGuest())
    with opened_journal(str(tmp_path), name_from(machine.address)) as journal:
        run = journal.begin("run-1", "book", (alert(),))
        journal.begin_step(run, 1, (Undo(word="nic-up", names=("net0",)),))
        journal.end(run, undone=True)
    output = Captured()
    with pytest.raises(UsageError, match="run-1 is undone already"):
        await respond(
            machine,
            output,
            action="undo",
            run="run-1",
            policy=None,
            state=str(tmp_path),
            respond=True,
        )
