"""What a codepack that is not ours says ends no watch, and is never taken for sight."""

import json
from pathlib import Path

import msgspec
import pytest

from qvmi.bus.message import Message
from qvmi.cli.exit_code import ExitCode
from qvmi.cli.printing.watch_report import WatchReport
from qvmi.codepacks.alert_file import AlertFile
from tests.unit.cli.streams import Captured
from tests.unit.manager.response.alerts import alert

PACK = "theirs"
FULL: dict[str, object] = {"sight": "full"}


def said(kind: str, body: dict[str, object], *, time: float = 1.0) -> Message:
    return Message(vm="web", codepack=PACK, kind=kind, time=time, body=body)


@pytest.mark.parametrize("kind", ["status", "alert", "cleared"])
@pytest.mark.parametrize("as_json", [False, True])
def test_what_cannot_be_read_is_told_and_counts_as_not_seen(kind: str, *, as_json: bool) -> None:
    output = Captured(json=as_json)
    report = WatchReport(output, [PACK])
    report.add(said("status", FULL))
    before = report.exit_code
    report.add(said(kind, {"sight": 7}))
    assert "theirs: what it says cannot be read: " in output.messages
    assert (before, report.exit_code) == (ExitCode.FINE, ExitCode.NOT_SEEN)
    report.add(said("status", FULL))
    assert output.result.count("\n") == 2  # and so the watch goes on


def test_numbers_that_are_longer_written_again_end_no_watch(tmp_path: Path) -> None:
    body = b",".join([b"1e15"] * 12_000)
    sent = msgspec.json.encode(said("mine", {}))[:-3] + b'{"n":[' + body + b"]}}"
    message = Message.from_json(sent)
    output = Captured(json=True)
    with AlertFile(tmp_path / "log") as file:
        report = WatchReport(output, [PACK])
        report.file = file
        report.add(message)
        report.add(said("status", FULL))
    assert "theirs: what it says cannot be read: " in output.messages
    assert [json.loads(line)["kind"] for line in output.result.splitlines()] == ["status"]


@pytest.mark.parametrize("time", [1e300, -1e300, 1e18])
def test_a_moment_that_no_calendar_has_is_shown_as_the_number_it_is(time: float) -> None:
    output = Captured()
    report = WatchReport(output, [PACK])
    report.add(said("alert", msgspec.to_builtins(alert(PACK)), time=time))
    assert output.result.startswith(f"{time:g} alert    high T1014 theirs: ")
    assert report.exit_code is ExitCode.FOUND


def test_nobody_but_the_responder_tells_what_was_done() -> None:
    output = Captured()
    body: dict[str, object] = {"playbook": "book", "run": "run-1", "step": 1, "word": "nic-down"}
    done = body | {"outcome": "done", "what": "net0: the link is down"}
    report = WatchReport(output, [PACK])
    report.add(said("response", done))
    assert output.result == ""
    report.add(Message(vm="web", codepack="response", kind="response", time=1.0, body=done))
    assert "step 1 (nic-down) done: net0: the link is down" in output.result
