"""``respond`` tells of runs and of what can be undone; where there are none it says so and makes nothing."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from qvmi.bus.topic import name_from
from qvmi.cli.exit_code import ExitCode
from qvmi.cli.handlers.respond import respond
from qvmi.cli.handlers.responding import journal_path, opened_journal
from qvmi.errors import UsageError
from qvmi.manager.response.journal import Undo
from qvmi.manager.response.records import Outcome
from qvmi.testing import FakeMachine
from tests.asynchronous import asynchronous
from tests.unit.cli.streams import Captured
from tests.unit.manager.response.alerts import alert

if TYPE_CHECKING:
    from qvmi.machine.machine import Machine

MACHINE = cast("Machine", FakeMachine())  # nothing is asked of it where nothing is undone
VM = name_from(MACHINE.address)
RUN = "hidden-20261129-153644-2fa3"


@pytest.fixture
def state(tmp_path: Path) -> str:
    """This is a folder with the journal of one run."""
    with opened_journal(str(tmp_path), VM) as journal:
        noted = journal.begin(RUN, "hidden", (alert(),))
        journal.begin_step(noted, 1, (Undo(word="nic-up", names=("nic0",)),))
        journal.end_step(noted, 1, Outcome.DONE)
        journal.end(noted)
    return str(tmp_path)


async def told(output: Captured, **changes: object) -> ExitCode:
    given: dict[str, Any] = {"action": "list", "run": None, "policy": None, "state": None}
    return await respond(MACHINE, output, **(given | changes))


@asynchronous
async def test_what_can_be_undone_is_listed_and_as_json_all_of_it_is_one_document(
    state: str,
) -> None:
    output, document = Captured(), Captured(json=True)
    assert await told(output, state=state) is ExitCode.FINE
    assert output.result.startswith(f"{RUN}  over  alert of 1970-01-01T")
    assert output.result.endswith("steps: 1 done  can be undone: 1 by nic-up\n")
    await told(document, state=state)
    (item,) = json.loads(document.result)["items"]
    told_in_document = {"name", "playbook", "alerts", "begun", "ended", "undo", "over", "undone"}
    assert item.keys() == told_in_document | {"at", "cleared"}  # docs/cli.md
    assert (item["name"], item["over"], item["ended"]) == (RUN, True, {"1": "done"})


@asynchronous
async def test_where_nothing_was_done_that_is_said_and_no_folder_is_made(tmp_path: Path) -> None:
    output, document = Captured(), Captured(json=True)
    for each in (output, document):
        assert await told(each, state=str(tmp_path)) is ExitCode.FINE
    where = journal_path(str(tmp_path), VM)
    none = f"no playbook was run for this machine, as there is no {where}"
    assert output.messages == f"qvmi: {none}; --state names another folder\n"
    assert json.loads(document.result) == {"items": []}
    with pytest.raises(UsageError, match="--state names another folder"):
        await told(output, action="undo", run=RUN, state=str(tmp_path))
    assert not where.parent.parent.exists()


@pytest.mark.parametrize(
    ("run", "words"),
    [(None, f"which run. There are {RUN}"), (f"{RUN}x", f"no run '{RUN}x'; is '{RUN}' meant")],
)
@asynchronous
async def test_a_run_that_is_not_there_leads_to_those_that_are(
    state: str, run: str | None, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        await told(Captured(), action="undo", run=run, state=state)


@asynchronous
async def test_what_was_undone_is_not_undone_again(state: str) -> None:
    with opened_journal(state, VM) as journal:
        journal.end(journal.runs[RUN], undone=True)
    output, document = Captured(), Captured(json=True)
    for each in (output, document):
        assert await told(each, action="undo", run=RUN, state=state) is ExitCode.FINE
    assert output.messages == f"qvmi: {RUN} was undone already\n"
    assert json.loads(document.result) == {"run": RUN, "undone": True, "items": []}


@asynchronous
async def test_a_list_takes_no_run(state: str) -> None:
    with pytest.raises(UsageError, match=f"respond list takes nothing: '{RUN}'"):
        await told(Captured(), action="list", run=RUN, state=state)
