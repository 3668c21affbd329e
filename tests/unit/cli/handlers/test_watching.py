"""A watch prints what codepacks say as they say it, and its exit code tells whether to worry."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from qvmi.addr import Va
from qvmi.bus.message import Message
from qvmi.cli.declared.words import ALL_PACKS, PACKS, USUAL_PACKS
from qvmi.cli.exit_code import ExitCode
from qvmi.cli.handlers.watching import watch
from qvmi.cli.printing.watch_report import WatchReport, observed
from qvmi.codepacks.codepack import Observation
from qvmi.codepacks.status import STATUS, Sight, Status
from qvmi.errors import (
    BusError,
    CodepackRefused,
    MachineGone,
    PolicyDenied,
    UsageError,
    WalkFailed,
)
from qvmi.manager.response.records import HOLDER, RESPONSE, Outcome, Record
from qvmi.policy import Grant
from qvmi.semantics.guest_os import Gap
from qvmi.testing import (
    FakeGuest,
    FakeMachine,
    fake_disk_difference,
    fake_process,
    fake_resources,
)
from tests.asynchronous import asynchronous
from tests.unit.cli.streams import Captured

DEADLINE_S: Final = 30
INTERVAL_S: Final = 0.02
WITHOUT_RULES: Final = [name for name in PACKS if name != "known-malware"]
INIT = fake_process(1, name="init")
EVIL = fake_process(666, name="evil\x1b[2J[bold]", uid=0)


def clean_machine() -> FakeMachine:
    return FakeMachine(FakeGuest(processes=[INIT, EVIL]))


def infected_machine() -> FakeMachine:
    return FakeMachine(FakeGuest(processes=[INIT], process_ids=[INIT, EVIL]))


async def watched(
    machine: FakeMachine,
    output: Captured,
    until: Callable[[], bool],
    *,
    end: signal.Signals,
    packs: str = USUAL_PACKS,
    **more: Any,  # noqa: ANN401 - the command's arguments
) -> ExitCode:
    """This watches until a condition holds, and sends this process a signal then."""
    watching = asyncio.create_task(
        watch(machine, output, packs=packs, interval=INTERVAL_S, duration_s=None, **more)
    )
    async with asyncio.timeout(DEADLINE_S):
        while not until() and not watching.done():  # noqa: ASYNC110 - a stream tells nobody
            await asyncio.sleep(INTERVAL_S)
        os.kill(os.getpid(), end)
        return await watching


@pytest.mark.parametrize("packs", [USUAL_PACKS, ALL_PACKS])
@asynchronous
async def test_says_that_it_runs_one_of_how_many_unless_it_was_told_which(packs: str) -> None:
    output = Captured()
    machine = clean_machine()
    await watched(
        machine, output, lambda: "watching" in output.messages, end=signal.SIGINT, packs=packs
    )
    assert ("`watch all` runs all 17," in output.messages) == (packs == USUAL_PACKS)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
@asynchronous
async def test_an_alert_leads_to_1_when_it_is_ended(end: signal.Signals) -> None:
    output = Captured()
    code = await watched(infected_machine(), output, lambda: " alert " in output.result, end=end)
    assert code is ExitCode.FOUND


@asynchronous
async def test_an_alert_is_printed_with_its_evidence_and_harmless() -> None:
    output = Captured()
    await watched(infected_machine(), output, lambda: " alert " in output.result, end=signal.SIGINT)
    lines = output.result.splitlines()
    at = next(number for number, line in enumerate(lines) if " alert " in line)
    assert "high T1014 hidden-processes: process 666 (evil\\x1b[2J[bold])" in lines[at]
    assert lines[at + 1].startswith(f"    init_pid_ns.idr: present at {EVIL.address:#x}, pid 666")
    assert lines[at + 2].startswith("    init_task.tasks: absent")
    assert all(line.isprintable() for line in lines)


def test_an_address_among_the_facts_is_told_as_one_and_a_number_as_a_number() -> None:
    seen = Observation(
        view="v", present=True, facts={"pid": 7, "memory": EVIL.address, "gone": True}
    )
    assert observed(seen) == f"v: present, pid 7, memory {EVIL.address:#x}, gone True"


def test_what_a_fact_does_not_tell_is_a_dash_and_no_gap_in_the_line() -> None:
    seen = Observation(view="v", present=True, facts={"name": "", "path": None, "inode": 0})
    assert observed(seen) == "v: present, name -, path -, inode 0"


def test_what_is_said_stands_in_a_column_whatever_kind_of_message_it_is() -> None:
    output = Captured()
    report = WatchReport(output, ["one"])
    step = Record(playbook="p", run="run-1", step=0, word="", outcome=Outcome.DONE, what="it runs")
    for who, kind, body in (("one", STATUS, Status(sight=Sight.FULL)), (HOLDER, RESPONSE, step)):
        said: dict[str, object] = msgspec.to_builtins(body)
        report.add(Message(vm="vm", codepack=who, kind=kind, time=0.0, body=said))
    first, second = output.result.splitlines()
    assert first.index("one: sight full") == second.index("run-1: the run done: it runs")


@asynchronous
async def test_as_json_each_message_is_a_line_with_its_kind() -> None:
    output = Captured(json=True)
    await watched(infected_machine(), output, lambda: '"alert"' in output.result, end=signal.SIGINT)
    documents = [json.loads(line) for line in output.result.splitlines()]
    assert {document["kind"] for document in documents} == {"alert", "status"}
    (alert,) = (document for document in documents if document["kind"] == "alert")
    assert alert["codepack"] == "hidden-processes"
    assert alert["body"]["finding"]["evidence"][0]["address"] == EVIL.address
    assert alert["body"]["finding"]["evidence"][0]["facts"]["name"] == EVIL.name


@asynchronous
async def test_nothing_found_in_full_sight_is_0() -> None:
    output = Captured()
    code = await watched(
        clean_machine(), output, lambda: "sight full" in output.result, end=signal.SIGINT
    )
    assert code is ExitCode.FINE
    assert " alert " not in output.result


@pytest.fixture
def granting(tmp_path: Path) -> str:
    """This is a policy file that lets codepacks be shown disks and networks, too."""
    path = tmp_path / "policy.toml"
    path.write_text(
        "version = 1\n[default]\nread-memory = true\ndisk = true\nnetwork-capture = true\n"
    )
    return str(path)


@asynchronous
async def test_all_stands_for_every_codepack_that_comes_with_qvmi(granting: str) -> None:
    output = Captured()
    code = await watched(
        clean_machine(),
        output,
        lambda: all(f"{name}: sight full" in output.result for name in WITHOUT_RULES),
        end=signal.SIGINT,
        packs=ALL_PACKS,
        policy=granting,
    )
    assert code is ExitCode.FINE
    assert " alert " not in output.result
    assert output.messages.count("left out") == 1  # known-malware, which needs rules


MORE_THAN_MEMORY = ("disk-differences", "flows-without-owner")
NOTHING_THERE = {Grant.DISK: "this machine has no disk", Grant.NETWORK_CAPTURE: "no network card"}


@pytest.mark.parametrize(
    ("lacking", "may", "reason"),
    [
        ({}, False, "(grant 'disk': --policy FILE gives it, by `disk = true` in [codepacks."),
        (NOTHING_THERE, True, "no disk"),
        (NOTHING_THERE, True, "no network card"),
    ],
)
@asynchronous
async def test_all_leaves_out_who_cannot_be_shown_what_he_wants_and_says_why(
    lacking: dict[Grant, str], reason: str, granting: str, *, may: bool
) -> None:
    machine = FakeMachine(FakeGuest(processes=[INIT]), lacking=lacking)
    output = Captured()
    await watched(
        machine,
        output,
        lambda: "hidden-processes: sight full" in output.result,
        end=signal.SIGINT,
        packs=ALL_PACKS,
        policy=granting if may else None,
    )
    told = [line for line in output.messages.splitlines() if "left out: " in line]
    assert [any(name in line for line in told) for name in MORE_THAN_MEMORY] == [True, True]
    assert any(reason in line for line in told)
    (running,) = (line for line in output.messages.splitlines() if "watching" in line)
    assert not any(name in running for name in MORE_THAN_MEMORY)
    assert "container-escape" in running


@pytest.mark.parametrize("name", MORE_THAN_MEMORY)
@asynchronous
async def test_who_is_named_and_cannot_be_shown_what_he_wants_is_refused(
    name: str, granting: str, caplog: pytest.LogCaptureFixture
) -> None:
    named: dict[str, Any] = {"packs": [name], "interval": INTERVAL_S, "duration_s": 1.0}

    async def refused(machine: FakeMachine, error: type, words: str, **more: str) -> None:
        with pytest.raises(error, match=words):
            await watch(machine, Captured(), **(named | more))
        assert machine.calls == []

    await refused(clean_machine(), PolicyDenied, rf"--policy FILE .* \[codepacks.{name}\]")
    assert "refused: " in caplog.text
    nothing = FakeMachine(FakeGuest(processes=[INIT]), lacking=NOTHING_THERE)
    await refused(nothing, CodepackRefused, "this machine has no disk|no network", policy=granting)
    process = {"policy": granting, "placement": "process"}
    await refused(clean_machine(), CodepackRefused, "leave out --placement process", **process)


@asynchronous
async def test_what_is_beside_memory_leads_to_alerts_with_both_views(granting: str) -> None:
    machine = FakeMachine(
        FakeGuest(processes=[INIT]),
        resources=fake_resources(disk_differences=[fake_disk_difference("/bin/su\x1b[2J")]),
    )
    output = Captured()
    code = await watched(
        machine,
        output,
        lambda: " alert " in output.result,
        end=signal.SIGINT,
        packs="disk-differences",
        policy=granting,
    )
    assert code is ExitCode.FOUND
    assert "/bin/su\\x1b[2J: a page in memory" in output.result
    assert f"sha256 {'aa' * 32}" in output.result
    assert f"sha256 {'bb' * 32}" in output.result


@asynchronous
async def test_what_was_not_seen_whole_is_4() -> None:
    machine = clean_machine()
    machine.guest.show_processes([INIT, EVIL], gaps=[Gap("tasks", Va(1), "torn")])
    output = Captured()
    code = await watched(machine, output, lambda: "sight gaps" in output.result, end=signal.SIGINT)
    assert code is ExitCode.NOT_SEEN


@asynchronous
async def test_sight_that_came_back_is_0() -> None:
    machine = clean_machine()
    machine.guest.fail_next("processes", WalkFailed("tasks", "torn"))
    output = Captured()
    code = await watched(machine, output, lambda: "sight full" in output.result, end=signal.SIGINT)
    assert "sight blind: " in output.result
    assert "cannot walk tasks: torn" in output.result
    assert code is ExitCode.FINE


@asynchronous
async def test_a_clearance_is_printed_and_the_alert_still_counts() -> None:
    machine = infected_machine()
    output = Captured()

    def cured() -> bool:
        if " alert " in output.result:
            machine.guest.show_processes([INIT, EVIL])
        return " cleared " in output.result

    code = await watched(machine, output, cured, end=signal.SIGINT)
    assert "no longer seen" in output.result
    assert code is ExitCode.FOUND


@asynchronous
async def test_it_ends_when_its_time_is_up() -> None:
    output = Captured()
    async with asyncio.timeout(DEADLINE_S):
        code = await watch(
            clean_machine(), output, packs=USUAL_PACKS, interval=INTERVAL_S, duration_s=1.5
        )
    assert code is ExitCode.FINE


@asynchronous
async def test_a_machine_that_ends_is_an_error() -> None:
    machine = clean_machine()
    machine.fail_next("run_state", MachineGone("query-status"))
    output = Captured()
    with pytest.raises(MachineGone):
        async with asyncio.timeout(DEADLINE_S):
            await watch(machine, output, packs=USUAL_PACKS, interval=INTERVAL_S, duration_s=None)


@asynchronous
async def test_a_machine_that_ends_after_an_alert_is_1() -> None:
    machine = infected_machine()
    output = Captured()

    def alarmed() -> bool:
        if " alert " in output.result:
            machine.fail_next("run_state", MachineGone("query-status"))
        return False

    code = await watched(machine, output, alarmed, end=signal.SIGCONT)
    assert code is ExitCode.FOUND
    assert "QEMU is gone" in output.messages


@asynchronous
async def test_ctrl_c_means_the_usual_again_afterwards() -> None:
    before = signal.getsignal(signal.SIGINT)
    output = Captured()
    await watched(clean_machine(), output, lambda: "full" in output.result, end=signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) in {before, signal.default_int_handler}


def logged(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@asynchronous
async def test_what_stands_is_told_by_the_next_watch_and_leads_to_1_but_is_no_new_alert(
    tmp_path: Path,
) -> None:
    state, log = tmp_path / "state", tmp_path / "alerts.log"
    kept: dict[str, Any] = {"state": str(state), "log": str(log)}

    def saved() -> bool:
        return any(one.stat().st_size > 200 for one in state.rglob("*.json"))

    machine = infected_machine()
    await watched(machine, Captured(), saved, end=signal.SIGINT, **kept)
    output = Captured()
    code = await watched(
        machine, output, lambda: "full" in output.result, end=signal.SIGINT, **kept
    )
    assert code is ExitCode.FOUND
    assert "sight full, alerts of an earlier run that stand: 1" in output.result
    machine.guest.show_processes([INIT, EVIL])
    output = Captured()
    await watched(machine, output, lambda: " cleared " in output.result, end=signal.SIGINT, **kept)
    said = [one["body"]["evidence_hash"] for one in logged(log) if one["kind"] != "status"]
    kinds = [one["kind"] for one in logged(log) if one["kind"] != "status"]
    assert kinds == ["alert", "cleared"]
    assert said[0] == said[1]


@asynchronous
async def test_a_log_that_cannot_be_written_is_told_once_and_the_watch_goes_on(
    tmp_path: Path,
) -> None:
    log = tmp_path / "alerts.log"
    output = Captured()
    machine = infected_machine()

    def told() -> bool:
        if " alert " in output.result and log.is_file():
            log.unlink()
            log.mkdir()
            machine.guest.show_processes([INIT, EVIL])
        return " cleared " in output.result

    await watched(machine, output, told, end=signal.SIGINT, log=str(log))
    assert output.messages.count(f"{log}: 1 messages could not be written") == 1
    assert "2 messages" not in output.messages


@contextmanager
def existing_broker(folder: Path) -> Iterator[str]:
    """This is a broker that somebody else has set up, for anybody; gives its URL."""
    socket = folder / "broker.sock"
    lines = [f"listener 0 {socket}", "allow_anonymous true", "persistence false"]
    lines += ["user root"] if os.geteuid() == 0 else []
    (folder / "broker.conf").write_text("\n".join(lines) + "\n")
    program = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program is not None
    with subprocess.Popen([program, "-c", str(folder / "broker.conf")]) as broker:
        try:
            deadline = time.monotonic() + DEADLINE_S
            while not socket.is_socket() and time.monotonic() < deadline:
                time.sleep(0.01)
            yield f"unix://{socket}"
        finally:
            broker.kill()


def test_a_broker_that_exists_is_used_and_whoever_listens_there_hears_the_alert() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="qvmi-state-") as folder,
        existing_broker(Path(folder)) as url,
    ):
        listening = ["mosquitto_sub", "--unix", url.removeprefix("unix://"), "-V", "5", "-C", "1"]
        heard = subprocess.Popen(
            [*listening, "-t", "qvmi/v1/+/hidden-processes/alert", "-W", "30"],
            stdout=subprocess.PIPE,
        )
        output = Captured()
        watching = watch(
            infected_machine(),
            output,
            packs=USUAL_PACKS,
            interval=INTERVAL_S,
            duration_s=2.0,
            bus=url,
        )
        assert asyncio.run(watching) is ExitCode.FOUND
        message, _ = heard.communicate()
    assert json.loads(message)["body"]["finding"]["technique"] in output.result


@pytest.mark.parametrize(
    ("bus", "placement", "words"),
    [
        ("http://host", "here", "must begin with mqtt://"),
        ("unix:///run/broker.sock", "process", "--bus goes without --placement process"),
    ],
)
@asynchronous
async def test_a_broker_that_cannot_be_used_is_told_of(
    bus: str, placement: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        await watch(
            clean_machine(),
            Captured(),
            packs=USUAL_PACKS,
            interval=None,
            duration_s=None,
            bus=bus,
            placement=placement,
        )


@pytest.mark.parametrize(("placement", "other"), [("here", "with --bus"), ("process", "")])
@asynchronous
async def test_without_mosquitto_it_is_wrong_usage_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, placement: str, other: str
) -> None:
    # The program is looked for in folders of the system's own, too, which a test cannot empty.
    monkeypatch.setattr("qvmi.bus.broker._SYSTEM_FOLDERS", ())
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match=f"apt install mosquitto.*{other}"):
        await watch(
            clean_machine(),
            Captured(),
            packs=USUAL_PACKS,
            interval=None,
            duration_s=None,
            placement=placement,
        )


def test_without_a_broker_at_the_url_that_is_said_and_nothing_is_watched() -> None:
    watching = watch(
        clean_machine(),
        Captured(),
        packs=USUAL_PACKS,
        interval=None,
        duration_s=None,
        bus="unix:///nowhere/broker.sock",
    )
    with pytest.raises(BusError, match=r"in a row: no broker answers on /nowhere/broker\.sock"):
        asyncio.run(watching)
