"""``pack run``: what one codepack finds, and what the exit code says of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from qvmi.cli.exit_code import ExitCode
from qvmi.cli.handlers.pack_running import run
from qvmi.errors import CodepackRefused, PolicyDenied, UsageError, WalkFailed
from qvmi.semantics.guest_os import Gap
from qvmi.testing import FakeGuest, FakeMachine, fake_process
from tests.asynchronous import asynchronous
from tests.command_line import qvmi
from tests.unit.cli.streams import Captured
from tests.unit.codepacks.signed_packs import pack_folder

INIT = fake_process(1, name="init")
EVIL = fake_process(666, name="evil\x1b[2J")
DEFAULTS: dict[str, Any] = {
    "action": "run",
    "what": "hidden-processes",
    "key": None,
    "days": None,
    "keys": None,
    "rounds": None,
    "interval": 0.005,
    "policy": None,
    "settings": (),
}


def infected() -> FakeMachine:
    return FakeMachine(FakeGuest(processes=[INIT], process_ids=[INIT, EVIL]))


async def ran(machine: FakeMachine, output: Captured, **changes: object) -> ExitCode:
    return await run(machine, output, **(DEFAULTS | changes))


@asynchronous
async def test_what_was_found_is_told_with_its_evidence_and_leads_to_1() -> None:
    output = Captured()
    assert await ran(infected(), output) is ExitCode.FOUND
    first, *evidence = output.result.splitlines()
    assert first.startswith("high T1014 hidden-processes: process 666 (evil\\x1b[2J)")
    assert "not confirmed" not in first
    assert [line.split(":")[0] for line in evidence] == [
        "    init_pid_ns.idr",
        "    init_task.tasks",
    ]
    assert output.messages == "qvmi: hidden-processes: 2 looks, 1 found, sight full\n"


@asynchronous
async def test_one_round_is_told_to_confirm_nothing() -> None:
    output = Captured()
    assert await ran(infected(), output, rounds=1) is ExitCode.FOUND
    assert output.result.splitlines()[0].endswith("(not confirmed)")


@asynchronous
async def test_as_json_it_is_one_document() -> None:
    output = Captured(json=True)
    assert await ran(infected(), output, rounds=3) is ExitCode.FOUND
    document = json.loads(output.result)
    (item,) = document["items"]
    assert (document["rounds"], document["sight"], document["note"]) == (3, "full", "")
    assert (item["confirmed"], item["rounds"], len(item["evidence_hash"])) == (True, 2, 64)
    assert item["finding"]["technique"] == "T1014"
    assert output.messages == ""


@asynchronous
async def test_nothing_found_is_0_and_what_could_not_be_seen_is_4() -> None:
    clean = FakeMachine(FakeGuest(processes=[INIT]))
    assert await ran(clean, Captured()) is ExitCode.FINE
    guest = FakeGuest(processes=[INIT])
    guest.show_processes([INIT], gaps=[Gap("init_task.tasks", None, "not readable")], once=True)
    torn = FakeMachine(guest)
    torn.fail_next("guest", WalkFailed("init_task.tasks", "it is a loop"))
    output = Captured()
    assert await ran(torn, output, rounds=1) is ExitCode.NOT_SEEN
    assert "sight blind" in output.messages


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"what": None}, UsageError),
        ({"key": "alice"}, UsageError),
        ({"what": "no-such-folder"}, UsageError),
    ],
)
@asynchronous
async def test_what_cannot_be_run_is_refused(changes: dict[str, object], error: type) -> None:
    machine = infected()
    with pytest.raises(error):
        await ran(machine, Captured(), **changes)
    assert "guest" not in machine.calls


@asynchronous
async def test_a_name_that_was_misspelt_is_told_the_right_one() -> None:
    with pytest.raises(UsageError, match="is 'hidden-processes' meant"):
        await ran(infected(), Captured(), what="hiden-processes")


@asynchronous
async def test_an_unsigned_folder_is_refused_and_none_of_it_runs(tmp_path: Path) -> None:
    folder = pack_folder(tmp_path / "pack")
    (tmp_path / "keys").mkdir()
    machine = infected()
    with pytest.raises(CodepackRefused, match="signed"):
        await ran(machine, Captured(), what=str(folder), keys=str(tmp_path / "keys"))
    assert machine.calls == []


@asynchronous
async def test_the_policy_says_whether_it_may_look(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("version = 1\n[codepacks.hidden-processes]\n")
    with pytest.raises(PolicyDenied):
        await ran(infected(), Captured(), policy=str(policy))


def test_options_of_run_are_refused_elsewhere() -> None:
    done = qvmi("pack", "list", "--rounds", "2")
    assert done.returncode == 2
    assert "they are for run" in done.stderr
    assert qvmi("pack", "run", "hidden-processes").returncode == 2


@pytest.mark.parametrize("name", ["disk-differences", "flows-without-owner"])
@asynchronous
async def test_who_is_shown_more_than_memory_needs_the_grant_and_a_machine_that_runs(
    name: str, tmp_path: Path
) -> None:
    machine = infected()
    with pytest.raises(PolicyDenied, match=rf"--policy FILE .* \[codepacks.{name}\]"):
        await ran(machine, Captured(), what=name)
    assert machine.calls == []
    policy = tmp_path / "policy.toml"
    grants = "read-memory = true\ndisk = true\nnetwork-capture = true\n"
    policy.write_text(f"version = 1\n[codepacks.{name}]\n{grants}")
    assert await ran(machine, Captured(), what=name, policy=str(policy)) is ExitCode.FINE
    fetched = [call for call in machine.calls if call in {"disk_differences", "flows"}]
    assert len(fetched) == 2
