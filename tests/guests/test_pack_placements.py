"""One codepack finds the same wherever it runs: in this process, in its own, and on a dump."""

import asyncio
import json
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import qvmi
from qvmi.bus.message import Message
from qvmi.cli.declared.words import PACKS
from qvmi.manager.isolation_watch import IsolationVerdict
from qvmi.manager.manager import Manager, manage
from qvmi.manager.pack_spec import PackSpec
from tests.asynchronous import asynchronous, until
from tests.built_in_packs import MEMORY_PACKS, RULES
from tests.command_line import QVMI, environment
from tests.command_line import qvmi as qvmi_command
from tests.guests.lab import Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool
from tests.guests.rootkit import hide_process, show_process
from tests.repository.tree import ROOT

if TYPE_CHECKING:
    from qvmi.semantics.guest_os import Process

WAIT_S = 100.0
HIDDEN = PackSpec(
    "hidden-processes", "qvmi.codepacks.detectors.hidden_processes:HiddenProcesses", 0.05
)
RUN = ("pack", "run", "hidden-processes", "--json")


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(GuestConfig("6.1"))


def ran(*arguments: str, code: int) -> Any:  # noqa: ANN401 - JSON
    """This is what the command prints when it ends as it must."""
    done = qvmi_command(*arguments)
    assert (done.returncode, done.stderr) == (code, ""), done.stdout
    return json.loads(done.stdout)


def essence(finding: Any) -> Any:  # noqa: ANN401 - JSON
    """This is the finding without what changes while a guest runs, such as how many processes there are."""
    return finding | {"evidence": [one | {"facts": None} for one in finding["evidence"]]}


@asynccontextmanager
async def managing(guest: Guest, state: Path) -> AsyncIterator[Manager]:
    async def proven() -> IsolationVerdict:
        return IsolationVerdict(proven=True)

    async with (
        qvmi.attach(guest.qmp, cache=state / "cache") as machine,
        manage(machine, [HIDDEN], vm="web", state=state, isolation=lambda _: proven) as manager,
    ):
        yield manager


async def found_by_a_process_of_its_own(guest: Guest, state: Path) -> Any:  # noqa: ANN401 - JSON
    async with asyncio.timeout(WAIT_S), managing(guest, state) as manager:
        alert = await heard_first(manager, "alert")
        return alert.body["finding"]


@asynchronous
async def test_here_in_a_process_and_on_a_dump_the_same_is_found(
    guest: Guest, state: Path, proof_count: Callable[[int], None]
) -> None:
    live = ("--qmp", guest.qmp)
    clean = ran(*live, *RUN, code=0)
    assert (clean["items"], clean["sight"], clean["rounds"]) == ([], "full", 2)
    hidden = hide_process(guest, "httpd")
    try:
        assert hidden.pid in {task.pid for task in guest.truth().processes}
        here = ran(*live, *RUN, code=1)
        dump = state / "guest.core"
        assert qvmi_command(*live, "dump", str(dump)).returncode == 0
        process = await found_by_a_process_of_its_own(guest, state)
    finally:
        show_process(guest, hidden)
    later = ran("--dump", str(dump), *RUN, code=1)
    (live_item,), (dumped_item,) = here["items"], later["items"]
    assert essence(live_item["finding"]) == essence(dumped_item["finding"]) == essence(process)
    assert process["evidence"][0]["address"] == hidden.address
    assert (live_item["confirmed"], dumped_item["confirmed"]) == (True, False)
    assert (later["rounds"], later["provenance"]["taken"]) == (1, "dump")
    assert "one look at a dump" in later["note"]
    proof_count(3)


async def heard_first(manager: Manager, *kinds: str) -> Message:
    """This is the next message of these kinds; all of one codepack."""
    async for message in manager:
        if message.codepack == "hidden-processes" and message.kind in kinds:
            return message
    raise AssertionError(f"the manager ended without {kinds}")


@asynchronous
async def test_neither_a_codepack_nor_a_manager_that_is_started_again_raises_it_again(
    guest: Guest, state: Path
) -> None:
    standing = state / "web/packs/hidden-processes/standing.json"
    async with asyncio.timeout(WAIT_S):
        hidden: Process | None = hide_process(guest, "httpd")
        try:
            async with managing(guest, state) as manager:
                first = await heard_first(manager, "alert")
                await until(standing.exists)
                manager.fleet.running["hidden-processes"].kill()
                status = await heard_first(manager, "alert", "status")
                while not (status.kind == "status" and status.body.get("standing")):
                    assert status.kind == "status", "it was raised again"
                    status = await heard_first(manager, "alert", "status")
            async with managing(guest, state) as manager:
                status = await heard_first(manager, "alert", "status")
                assert (status.kind, status.body["standing"]) == ("status", 1)
                assert hidden is not None
                show_process(guest, hidden)
                hidden = None
                last = await heard_first(manager, "alert", "cleared")
        finally:
            if hidden is not None:
                show_process(guest, hidden)
    assert last.kind == "cleared"
    assert last.body["evidence_hash"] == first.body["evidence_hash"]


def test_a_dump_of_a_clean_guest_is_clean(guest: Guest, state: Path) -> None:
    dump = state / "guest.core"
    assert qvmi_command("--qmp", guest.qmp, "dump", str(dump)).returncode == 0
    done = qvmi_command("--dump", str(dump), "pack", "run", "hidden-processes")
    assert (done.returncode, done.stdout) == (0, "")
    first, second = done.stderr.splitlines()
    assert first == "qvmi: hidden-processes: 1 look, 0 found, sight full"
    assert "one look at a dump" in second
    refused = qvmi_command("--dump", str(dump), "pack", "run", "disk-differences")
    assert (refused.returncode, refused.stdout) == (4, "")
    assert "run it on the machine, by --qmp (disk)" in refused.stderr


HERE: tuple[str, ...] = ()
PROCESS = ("--placement", "process", "--allow-unproven-isolation")
OF_MEMORY = set(MEMORY_PACKS)
"""The others are left out where no policy grants them more."""


@pytest.mark.parametrize("placement", [HERE, PROCESS], ids=["here", "process"])
def test_all_that_come_with_qvmi_see_a_guest_together_wherever_they_run(
    guest: Guest, state: Path, placement: tuple[str, ...]
) -> None:
    rules = state / "rules"
    rules.mkdir(mode=0o700)  # which no codepack of another uid can enter
    (rules / "nothing.yar").write_text(RULES)
    command = (*QVMI, "--qmp", guest.qmp, "--json", "watch", "all", *placement)
    command += ("--set", f"known-malware.rules={rules}", "--set", "known-malware.window_s=60")
    sights: dict[str, str] = {}
    with subprocess.Popen(
        (*command, "--state", str(state / "watch"), "--for", str(WAIT_S)),
        cwd=ROOT,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
    ) as watching:
        assert watching.stdout is not None
        for line in watching.stdout:
            message = json.loads(line)
            if message["kind"] == "status":
                sights[message["codepack"]] = message["body"]["sight"]
            if {name for name, sight in sights.items() if sight == "full"} >= OF_MEMORY:
                break
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=WAIT_S)
    assert {sights.get(name) for name in OF_MEMORY} == {"full"}, sights
    assert sights.keys() & set(PACKS) == OF_MEMORY
