"""What alerts lead to, on real guests: the links, dumps, snapshots and evidence, and who may."""

import asyncio
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

import qvmi
from qvmi.addr import Pa, Va
from qvmi.bus.local import in_process
from qvmi.bus.message import Message
from qvmi.codepacks.alert import Alert
from qvmi.codepacks.codepack import Codepack, Finding, Observation, Severity
from qvmi.codepacks.confirmation import Confirmed
from qvmi.codepacks.detectors.hidden_processes import HiddenProcesses
from qvmi.codepacks.detectors.hidden_sockets import HiddenSockets
from qvmi.manager.response.journal import Journal, Undo
from qvmi.manager.response.playbook_file import parse_playbooks
from qvmi.manager.response.records import RESPONSE, Outcome, Record
from qvmi.manager.response.responder import Responder
from qvmi.manager.response.scene import ReportMaker, Story
from qvmi.manager.watch import watch
from qvmi.policy import OBSERVE, Grant, Policy
from qvmi.semantics.guest_os import GuestOS
from qvmi.view import Provenance, Taken
from tests.asynchronous import asynchronous, until
from tests.command_line import qvmi as qvmi_command
from tests.documented_schemas import require_documented
from tests.guests.aarch64_guests import RAM_START, aarch64
from tests.guests.bare_qemu import BareQemu, bare_qemu
from tests.guests.lab import Guest, Lab
from tests.guests.network_card import carrier
from tests.guests.pool import GuestPool
from tests.guests.response_guest import (
    CONFIG,
    Acting,
    acting,
    documented,
    plugged,
    process_of,
    snapshots,
)
from tests.guests.rootkit import hide_process, show_process
from tests.repository.tree import ROOT

WAIT_S = 100.0
STEPS = ("nic-down", "pause", "dump", "disk-snapshot", "resume", "evidence", "message")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="qvmi-response-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(CONFIG)


@pytest.fixture(scope="module")
def image(guest: Guest, folder: Path) -> Path:
    """This is the disk of the guest, which has a NIC, too."""
    return plugged(guest, folder)


@pytest.fixture
def place() -> Iterator[Path]:
    """This is an empty folder, which other users' processes can reach."""
    with tempfile.TemporaryDirectory(prefix="qvmi-response-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


def test_a_dry_run_says_all_steps_and_changes_nothing(
    guest: Guest, image: Path, place: Path
) -> None:
    book, policy = documented(place)
    hidden = hide_process(guest, "httpd")
    try:
        words = ("--playbook", str(book), "--policy", str(policy), "--state", str(place / "state"))
        with acting(guest, *words) as watch:
            watch.until_step(len(STEPS))
    finally:
        show_process(guest, hidden)
    assert watch.steps == [(word, "would-do") for word in STEPS]
    assert carrier(guest) == "1"
    assert snapshots(image) == []
    assert not (place / "evidence").exists()
    assert not list(place.glob("state/*/response"))
    assert guest.monitor.running()


def test_the_documented_playbook_is_done_step_by_step_and_can_be_undone(
    guest: Guest, image: Path, place: Path
) -> None:
    book, policy = documented(place)
    state, log = str(place / "state"), str(place / "audit.log")
    hidden = hide_process(guest, "httpd")
    words = ("--playbook", str(book), "--policy", str(policy), "--state", state, "--respond")
    try:
        with acting(guest, *words, "--audit", log) as watch:
            last = watch.until_step(len(STEPS))
    finally:
        show_process(guest, hidden)
    run = last["run"]
    assert watch.steps == [(word, "done") for word in STEPS]
    assert guest.monitor.running()
    assert carrier(guest) == "0"
    assert snapshots(image) == [run]
    check_evidence(place / "evidence" / run, hidden.pid)
    assert last["paused_s"] > 0
    check_audit(log, run)
    respond = ("--qmp", guest.qmp, "respond")
    undone = qvmi_command(*respond, "undo", run, "--policy", str(policy), "--state", state)
    assert undone.returncode == 0, undone.stderr
    listed = qvmi_command(*respond, "list", "--state", state)
    assert listed.stdout.startswith(f"{run}  undone  alert of "), listed.stderr
    assert carrier(guest) == "1"
    assert snapshots(image) == []


def check_audit(log: str, run: str) -> None:
    audited = Path(log).read_text()
    for number, word in enumerate(STEPS, start=1):
        assert f"{run}: step {number} ({word}) done" in audited
    assert qvmi_command("audit", "verify", log).returncode == 0


def check_evidence(bundle: Path, pid: int) -> None:
    """This looks at the files with stock tools, and with ours at the dump."""
    checked = subprocess.run(
        ["sha256sum", "-c", "--strict", "SHA256SUMS"],
        cwd=bundle,
        check=True,
        capture_output=True,
        text=True,
    )
    files = {path.name for path in bundle.iterdir()}
    assert files == {
        *("SHA256SUMS", "alerts.json", "bundle.json", "guest.core", "records.json", "report.html"),
    }
    assert checked.stdout.count(": OK\n") == len(files) - 1
    (alert,) = json.loads((bundle / "alerts.json").read_bytes())
    assert alert["finding"]["evidence"][0]["facts"]["pid"] == pid
    header = subprocess.run(
        ["readelf", "-h", bundle / "guest.core"], check=True, capture_output=True, text=True
    )
    assert "CORE" in header.stdout
    found = qvmi_command(
        "--dump", str(bundle / "guest.core"), "pack", "run", "hidden-processes", "--json"
    )
    (item,) = json.loads(found.stdout)["items"]
    assert item["finding"]["evidence"][0]["facts"]["pid"] == pid
    assert "<h1>hidden-process on " in (bundle / "report.html").read_text()


# ---------------------------------------------------------------------------- who may, and who is killed


def an_alert(codepack: str, *evidence: Observation, key: str = "1") -> Alert:
    finding = Finding(
        claim="something is wrong",
        severity=Severity.CRITICAL,
        technique="T1014",
        key=key,
        evidence=evidence or (Observation(view="a list", present=True, facts={"pid": 7}),),
    )
    confirmed = Confirmed(finding, rounds=2, first_seen=time.time(), last_seen=time.time())
    return Alert.of(confirmed, codepack=codepack, provenance=Provenance(Taken.LIVE, time.time()))


def message_of(alert: Alert) -> Message:
    body: dict[str, object] = msgspec.to_builtins(alert)
    return Message(vm="web", codepack=alert.codepack, kind=alert.state, time=time.time(), body=body)


class Told:
    """This is what a responder has told, and who waits for it."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.messages: list[Message] = []

    def take(self, message: Message) -> None:
        self.messages.append(message)
        require_documented(message, body=message.kind)
        if message.kind == RESPONSE:
            self.records.append(message.read_body(Record))

    def outcomes(self) -> list[tuple[int, str]]:
        return [(one.step, str(one.outcome)) for one in self.records]

    async def until_count(self, count: int) -> None:
        await until(lambda: len(self.records) == count, within_s=WAIT_S)

    async def until(self, step: int, run: str | None = None) -> Record:
        def found() -> Record | None:
            of_step = (one for one in self.records if one.step == step)
            return next((one for one in of_step if run in (None, one.run)), None)

        await until(lambda: found() is not None, within_s=WAIT_S)
        record = found()
        assert record is not None
        return record


@asynccontextmanager
async def responding(
    guest: Guest | BareQemu,
    place: Path,
    book: str,
    policy: Policy,
    report: ReportMaker | None = None,
) -> AsyncIterator[tuple[Responder, Told, qvmi.Machine]]:
    """This acts on what it is told for as long as the block lasts, over a bus in this process."""
    told = Told()
    async with qvmi.attach(guest.qmp, policy=OBSERVE.plus(Grant.WRITE)) as machine:
        with Journal(place / "journal") as journal:
            responder = Responder(
                machine,
                parse_playbooks("book.toml", book.encode()),
                vm="web",
                policy=policy,
                journal=journal,
                tell=told.take,
                report=report,
            )
            async with in_process([responder.account]) as channel:
                running = asyncio.create_task(responder.run(channel))
                try:
                    yield responder, told, machine
                finally:
                    running.cancel()
                    await asyncio.wait({running})
                    await responder.close()


def a_book(*steps: str, when: str = "", more: str = "") -> str:
    then = "".join(f"[[playbooks.one.then]]\n{step}\n" for step in steps)
    return f"version = 1\n[playbooks.one]\n{more}\n[playbooks.one.when]\n{when}\n{then}"


@asynchronous
async def test_without_grants_every_step_is_refused_and_nothing_changes(
    guest: Guest, image: Path, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "qvmi.audit")
    book = a_book(
        *('do = "nic-down"', 'do = "pause"\nlongest-s = 5', 'do = "dump"', 'do = "disk-snapshot"'),
        *('do = "restore"', 'do = "message"\ntext = "over"'),
        more=f'folder = "{place}/evidence"',
    )
    alert = an_alert("system-calls", *patched(b"\x01" * 8, b"\x02" * 8, 0xFFFFFFFF81000000))
    async with responding(guest, place, book, Policy(frozenset())) as (responder, told, _):
        responder.take(message_of(alert))
        await told.until(6)
    expected = [(number, "refused") for number in range(1, 6)]
    assert told.outcomes() == [*expected, (6, "done")]
    grants = [re.search(r"grant '?([a-z-]+)", one.problem) for one in told.records[:5]]
    assert all(grants), told.records
    assert sum("refused" in one for one in caplog.messages) >= len(expected)
    assert carrier(guest) == "1"
    assert snapshots(image) == []
    assert guest.monitor.running()


def test_killed_in_the_middle_the_guest_runs_the_link_stays_down_and_the_next_watch_finishes(
    guest: Guest, image: Path, place: Path
) -> None:
    book, policy = documented(place)
    asking = r"(?s)\[playbooks.hidden-process.when.ask\].*?\n\n"
    book.write_text(re.sub(asking, "", book.read_text()))
    state, alert = place / "state", place / "alert.json"
    alert.write_bytes(msgspec.json.encode(an_alert("hidden-processes")))
    arguments = (guest.qmp, str(state), str(book), str(policy), str(alert), "3")
    killed = subprocess.run(
        [sys.executable, "-m", "tests.guests.cut_off_response", *arguments], cwd=ROOT, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    deadline = time.monotonic() + WAIT_S
    while not guest.monitor.running():  # the guardian sees to it
        assert time.monotonic() < deadline
    assert carrier(guest) == "0"
    words = ("--playbook", str(book), "--policy", str(policy), "--state", str(state), "--respond")
    with acting(guest, *words) as watch:
        last = watch.until_step(len(STEPS))
    first, *others = (one["body"] for one in watch.said if one["kind"] == "response")
    assert (first["step"], first["outcome"]) == (0, "failed")
    assert "cut off in step 3" in first["problem"]
    assert [one["step"] for one in others] == [2, 3, 4, 5, 6, 7]
    assert {one["outcome"] for one in others} == {"done"}
    assert (place / "evidence" / last["run"] / "guest.core").exists()
    assert guest.monitor.running()
    undone = ("respond", "undo", last["run"], "--policy", str(policy), "--state", str(state))
    assert qvmi_command("--qmp", guest.qmp, *undone).returncode == 0
    assert (carrier(guest), snapshots(image)) == ("1", [])


@asynchronous
async def test_what_one_playbook_keeps_another_one_does_not_undo_at_the_end(
    guest: Guest, image: Path, place: Path
) -> None:
    del image  # with which the NIC came
    books = "version = 1\n" + "".join(
        f"""[playbooks.{name}]\nat-exit = "{name}"\nwhen = {{codepack = "{name}"}}
        [[playbooks.{name}.then]]\ndo = "nic-down"\n"""
        for name in ("keep", "undo")
    )
    async with responding(guest, place, books, Policy(frozenset({Grant.NIC}))) as (one, told, _):
        for name in ("keep", "undo"):
            one.take(message_of(an_alert(name)))
        await told.until_count(2)
    assert told.outcomes() == [(1, "done"), (1, "done"), (1, "left-out")]
    assert "has done the same, and is not undone" in told.records[-1].problem
    assert await asyncio.to_thread(carrier, guest) == "0"
    with Journal(place / "journal") as journal:
        (noted,) = (run for run in journal.runs.values() if not run.undone)
    assert noted.playbook == "keep"
    for nic in {name for _, undo in noted.undo for name in undo.names}:
        guest.monitor.execute("set_link", name=nic, up=True)
    assert await asyncio.to_thread(carrier, guest) == "1"


@asynchronous
async def test_no_pause_lasts_longer_than_it_may_whatever_the_run_waits_for(
    guest: Guest, place: Path
) -> None:
    """What makes the report waits for the guest to run; a dump that is not whole in time is given up."""
    book = a_book(
        *('do = "pause"\nlongest-s = 0.05', 'do = "evidence"', 'do = "resume"'),
        *('do = "dump"\nlongest-s = 0.000001', 'do = "message"\ntext = "over"'),
        more=f'folder = "{place}/evidence"',
    )
    policy = Policy(frozenset({Grant.PAUSE, Grant.READ_MEMORY}))

    def report(_: GuestOS | None, __: Story) -> str:
        ends = time.monotonic() + WAIT_S
        while not guest.monitor.running():
            assert time.monotonic() < ends
        return "it runs"

    async with responding(guest, place, book, policy, report) as (responder, told, _):
        responder.take(message_of(an_alert("any")))
        await told.until(5)
    ended = next(one for one in told.records if one.step == 0)
    assert "had lasted as long as it may" in ended.problem
    assert ended.paused_s >= 0.05
    steps = [one for one in told.records if one.step]
    assert [str(one.outcome) for one in steps] == ["done", "done", "done", "failed", "done"]
    assert "nothing of it is kept" in steps[3].problem
    (bundle,) = await asyncio.to_thread(lambda: list((place / "evidence").iterdir()))
    files = await asyncio.to_thread(lambda: {path.name for path in bundle.iterdir()})
    assert files == {"SHA256SUMS", "alerts.json", "bundle.json", "records.json", "report.html"}
    assert guest.monitor.running()


# ------------------------------------------------------------------------------------------- agreement


@pytest.mark.usefixtures("image")
@asynchronous
async def test_a_network_and_a_memory_codepack_agree_and_one_confirms_before_the_link_goes_down(
    guest: Guest, place: Path
) -> None:
    book = a_book(
        'do = "nic-down"',
        more='at-exit = "undo"',
        when='codepack = "hidden-sockets"\n'
        'agree = {codepack = "hidden-processes", same = "pid", within-s = 600}\n'
        'ask = {codepack = "hidden-processes", deadline-s = 90}',
    )
    told = Told()
    async with qvmi.attach(guest.qmp) as machine:
        with Journal(place / "journal") as journal:
            responder = Responder(
                machine,
                parse_playbooks("book.toml", book.encode()),
                vm="web",
                policy=Policy(frozenset({Grant.NIC})),
                journal=journal,
                tell=told.take,
            )
            packs: list[Codepack] = [HiddenProcesses(0.2), HiddenSockets(0.2)]
            async with (
                asyncio.timeout(WAIT_S),
                watch(
                    machine, packs=packs, vm="web", companions=[responder], asked={MEMORY}
                ) as messages,
            ):
                hidden = hide_process(guest, "httpd")
                heard = set()
                try:
                    async for message in messages:
                        responder.take(message)
                        heard.add((message.codepack, message.kind))
                        if message.kind == RESPONSE:
                            break
                finally:
                    show_process(guest, hidden)
            assert {(MEMORY, "alert"), (NETWORK, "alert")} <= heard
            assert told.outcomes() == [(1, "done")]
            assert len(told.records[0].alerts) == 2
            assert carrier(guest) == "0"
            await responder.close()
    assert carrier(guest) == "1"


# --------------------------------------------------------------------------------------------- restore


def patched(there: bytes, wanted: bytes, address: int) -> tuple[Observation, Observation]:
    place = Va(address)
    return (
        Observation(view="sys_call_table", present=True, address=place, data=there.hex()),
        Observation(view="kernel image", present=False, address=place, data=wanted.hex()),
    )


UNUSED_CALL = 183
"""``afs_syscall``, which no kernel has and nobody calls."""


@asynchronous
async def test_a_patched_system_call_is_written_back_where_evidence_grant_and_table_agree(
    guest: Guest, place: Path
) -> None:
    book = a_book('do = "restore"', when="", more="at-most-per-hour = 60")
    policy = Policy(frozenset({Grant.WRITE}))
    rows = guest.run(
        "grep -w 'sys_call_table\\|init_task\\|__x64_sys_reboot' /proc/kallsyms"
    ).decode()
    symbols = {
        name: int(at, 16) for at, name in re.findall(r"^(\w+) \w (\w+)$", rows, re.MULTILINE)
    }
    entry = symbols["sys_call_table"] + 8 * UNUSED_CALL
    other = symbols["__x64_sys_reboot"].to_bytes(8, "little")
    async with responding(guest, place, book, policy) as (responder, told, machine):
        pa = machine.guest.kernel.space.translate(Va(entry))
        (ram,) = guest.ram_paths
        good = ram_bytes(ram, pa)
        evil = symbols["init_task"].to_bytes(8, "little")
        write_ram(ram, pa, evil)
        cases = {
            "another table": patched(evil, good, symbols["init_task"]),
            "half an entry": patched(evil[:4], good[:4], entry),
            "not there": patched(good[::-1], good, entry),
            "leads astray": patched(evil, (symbols["init_task"] + 8).to_bytes(8, "little"), entry),
            "another call's": patched(evil, other, entry),
            "says nothing": (Observation(view="sys_call_table", present=True, address=Va(entry)),),
        }
        for number, (key, evidence) in enumerate(cases.items(), start=1):
            responder.take(message_of(an_alert("system-calls", *evidence, key=key)))
            await told.until_count(number)
            assert told.records[-1].outcome == "refused", key
            assert ram_bytes(ram, pa) == evil, key
        alert = an_alert("system-calls", *patched(evil, good, entry))
        responder.take(message_of(alert))
        await told.until_count(len(cases) + 1)
        assert told.records[-1].outcome == "done", told.records[-1]
        assert ram_bytes(ram, pa) == good
    assert guest.monitor.running()


UNUSED_ON_AARCH64 = 42
"""``nfsservctl``, likewise: include/uapi/asm-generic/unistd.h."""
OVERFLOW = 4
"""The exception of an instruction that 64-bit programs do not have, so that nothing needs its gate."""


def test_what_the_codepack_of_system_calls_finds_is_written_back(guest: Guest, place: Path) -> None:
    """It comes back, too, and is written back again."""
    good, evil, restored = written_back(
        guest, place, "system-calls", "sys_call_table", UNUSED_CALL, times=2
    )
    assert restored == good != evil


def test_what_the_codepack_of_the_interrupt_table_finds_is_written_back(
    guest: Guest, place: Path
) -> None:
    good, evil, restored = written_back(guest, place, "interrupt-table", "idt_table", OVERFLOW)
    assert restored == good != evil
    assert good[2:6] == bytes.fromhex("100000ee")  # segment, stack, type: SDM volume 3A, figure 6-8


def test_on_aarch64_what_the_codepack_of_system_calls_finds_is_written_back(
    guests: GuestPool, place: Path
) -> None:
    guest = guests.restore(aarch64())
    good, evil, restored = written_back(
        guest, place, "system-calls", "sys_call_table", UNUSED_ON_AARCH64
    )
    assert restored == good != evil


def written_back(
    guest: Guest, place: Path, pack: str, table: str, number: int, *, times: int = 1
) -> tuple[bytes, bytes, bytes]:
    """This lets an entry lead elsewhere under a watch that restores: as it was, was made, and is then."""
    book, policy = documented(place)
    book.write_text(a_book('do = "restore"', when=f'codepack = "{pack}"'))
    size = {"sys_call_table": 8, "idt_table": 16}[table]
    rows = guest.run(f"grep -w {table} /proc/kallsyms").decode()
    entry = int(rows.split()[0], 16) + size * number
    with qvmi.attach_sync(guest.qmp) as machine:
        pa = machine.guest.kernel.space.translate(Va(entry))
    if (
        guest.config.machine == "virt"
    ):  # whose kernel lies elsewhere than the documented policy says
        pa = Pa(pa - RAM_START)
        page = f'"{entry & ~0xFFF:#x}+4K"'
        policy.write_text(policy.read_text().replace('"0xffffffff80000000+2G"', page))
    (ram,) = guest.ram_paths
    good = ram_bytes(ram, pa, size)
    evil = (0xBAD0).to_bytes(2, "little") + good[2:]
    words = ("--playbook", str(book), "--policy", str(policy), "--respond")
    with acting(guest, pack, *words, "--state", str(place / "state")) as watch:
        for _ in range(times):
            write_ram(ram, pa, evil)
            watch.until_step(1)
            watch.until(lambda one: one["kind"] == "cleared")
    assert watch.steps == [("restore", "done")] * times
    assert guest.run("echo lives") == b"lives\n"
    assert guest.monitor.running()
    return good, evil, ram_bytes(ram, pa, size)


def ram_bytes(ram: Path, pa: int, size: int = 8) -> bytes:
    with ram.open("rb") as file:
        file.seek(pa)
        return file.read(size)


def write_ram(ram: Path, pa: int, data: bytes) -> None:
    with ram.open("r+b") as file:
        file.seek(pa)
        file.write(data)


# ----------------------------------------------------------------------------------- processes of their own


NETWORK, MEMORY = "hidden-sockets", "hidden-processes"
ASKING = f"""\
codepack = "{NETWORK}"
severity = "high"
ask = {{codepack = "{MEMORY}", deadline-s = 300}}
"""
GRANTED = f"""\
version = 1
[codepacks.{NETWORK}]
read-memory = true
[codepacks.{MEMORY}]
read-memory = true
[codepacks.response]
read-memory = true
pause = {{longest-s = 60}}
nic = true
"""
STORY_S = 600
"""Longest time for all of it, on a host with far too much to do: it takes some 20 s."""
DONE = [
    *(("nic-down", "done"), ("pause", "done"), ("dump", "done"), ("disk-snapshot", "refused")),
    *(("resume", "done"), ("evidence", "done")),
]


@contextmanager
def in_processes(guest: Guest, place: Path) -> Iterator[Acting]:
    """This watches with two codepacks, each in a process of its own, and acts as far as is granted."""
    book, policy = place / "book.toml", place / "policy.toml"
    more = f'folder = "{place}/evidence"\nat-most-per-hour = 1'
    steps = [f'do = "{word}"' + "\nlongest-s = 60" * (word == "pause") for word, _ in DONE]
    book.write_text(a_book(*steps, when=ASKING, more=more))
    policy.write_text(GRANTED)
    words = ("--playbook", str(book), "--policy", str(policy), "--respond")
    kept = ("--state", str(place / "state"), "--audit", str(place / "audit.log"))
    placed = ("--placement", "process", "--allow-unproven-isolation")
    with acting(guest, NETWORK, MEMORY, *words, *kept, *placed) as watch:
        watch.until(lambda _: watch.sighted >= {NETWORK, MEMORY})
        yield watch


def undone_as_granted(guest: Guest, run: str, place: Path) -> None:
    """This undoes a run, which needs the policy that it was done by."""
    undo = ("--qmp", guest.qmp, "respond", "undo", run, "--state", str(place / "state"))
    refused = qvmi_command(*undo)
    assert (refused.returncode, carrier(guest)) == (4, "0")
    assert "[codepacks.response] in --policy FILE" in refused.stderr
    undone = qvmi_command(*undo, "--policy", str(place / "policy.toml"))
    assert (undone.returncode, carrier(guest)) == (0, "1"), undone.stderr


def is_of_network(message: dict[str, Any]) -> bool:
    """This tells whether a message is an alert of sockets that are hidden."""
    if (message["codepack"], message["kind"]) != (NETWORK, "alert"):
        return False
    return bool(message["body"]["finding"]["severity"] == "high")


@pytest.mark.timeout(STORY_S)
def test_a_network_codepack_tells_a_memory_codepack_that_is_killed_and_the_playbook_completes(
    guest: Guest, image: Path, place: Path
) -> None:
    with in_processes(guest, place) as watch:
        first = process_of(MEMORY, place)
        os.kill(first, signal.SIGSTOP)  # it will have answered nothing that it is asked from now on
        hidden = hide_process(guest, "httpd")
        try:
            watch.until(is_of_network)
            os.kill(first, signal.SIGKILL)
            run = watch.until_step(len(DONE))["run"]
        finally:
            show_process(guest, hidden)
        assert process_of(MEMORY, place) != first
        told = [line for line in watch.messages if " granted" in line or "response " in line]
    assert watch.steps == DONE
    assert told[1].startswith("qvmi: not granted to response: control: ")
    assert told[2:] == [
        "qvmi: refused: response: snapshot disks: not granted (needs grant 'control')"
    ]
    assert guest.monitor.running()
    assert (carrier(guest), snapshots(image)) == ("0", [])
    (alert,) = json.loads((place / "evidence" / run / "alerts.json").read_bytes())
    assert f": process {hidden.pid} (httpd) has, " in alert["finding"]["claim"]
    assert "(disk-snapshot) refused" in (place / "audit.log").read_text()
    undone_as_granted(guest, run, place)


# --------------------------------------------------------------------------------------- other machines


@pytest.fixture
def bare(place: Path) -> Iterator[BareQemu]:
    """This is a machine with a NIC, and with a disk whose image is plain bytes."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", str(place / "raw"), "1M"], check=True)
    disk = f"driver=raw,node-name=disk0,file.driver=file,file.filename={place}/raw"
    with bare_qemu(
        *("-netdev", "user,id=wire", "-device", "e1000,netdev=wire,id=nic0"),
        *("-blockdev", disk, "-device", "virtio-blk-pci,drive=disk0"),
    ) as machine:
        yield machine


@asynchronous
async def test_an_image_that_keeps_no_snapshot_gets_an_overlay_or_is_refused(
    bare: BareQemu, place: Path
) -> None:
    book = a_book(
        *('do = "disk-snapshot"', f'do = "disk-snapshot"\noverlay-folder = "{place}"'),
        *('do = "disk-snapshot"\nname = "disk1"', 'do = "nic-down"\nnic = "nic1"'),
        *('do = "disk-snapshot"\noverlay-folder = "/nowhere"\nname = "disk0"',),
    )
    policy = Policy(frozenset({Grant.CONTROL, Grant.NIC}))
    async with responding(bare, place, book, policy) as (responder, told, _):
        responder.take(message_of(an_alert("any")))
        await told.until(5)
    assert told.outcomes() == [
        *((1, "refused"), (2, "done"), (3, "refused"), (4, "refused"), (5, "refused")),
    ]
    assert "(raw): the image cannot keep a snapshot" in told.records[0].problem
    assert "it has nic0" in told.records[3].problem
    (overlay,) = await asyncio.to_thread(lambda: list(place.glob("*.qcow2")))
    command = ["qemu-img", "info", "-U", "--output", "json", str(overlay)]
    done = await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
    said = json.loads(done.stdout)
    assert said["backing-filename"] == str(place / "raw")
    assert bare.monitor.running()


@pytest.mark.parametrize(
    ("how", "outcomes"),
    [
        ("undo", [(0, "failed"), (1, "undone")]),
        ("leave", [(0, "failed")]),
        ("finish", [(0, "failed"), (1, "done"), (2, "refused"), (3, "left-out")]),
    ],
)
@asynchronous
async def test_what_was_cut_off_is_undone_left_or_finished_once(
    bare: BareQemu, place: Path, how: str, outcomes: list[tuple[int, str]]
) -> None:
    path = place / "journal"
    with Journal(path) as journal:
        run = journal.begin("one-1", "one", (an_alert("any"),))
        journal.begin_step(run, 1, (Undo(word="nic-up", names=("nic0",)),))
    book = a_book(
        *('do = "nic-down"', 'do = "nic-down"\nnic = "nic1"', 'do = "message"\ntext = "over"'),
        more=f'on-restart = "{how}"\non-failure = "stop"',
    )
    policy = Policy(frozenset({Grant.NIC}))
    async with responding(bare, place, book, policy) as (responder, told, _):
        await until(lambda: b'"type":"over"' in path.read_bytes(), within_s=WAIT_S)
    assert told.outcomes() == outcomes
    async with responding(bare, place, book, policy) as (responder, told, _):
        responder.take(message_of(an_alert("any")))  # for which there was a run already
        responder.take(message_of(an_alert("any", key="2")))
        await told.until(3)
    assert told.outcomes() == [(1, "done"), (2, "refused"), (3, "left-out")]
    assert all(one.run != "one-1" for one in told.records)
    with Journal(path) as journal:
        assert journal.runs["one-1"].over
        assert journal.runs["one-1"].undone is (how == "undo")


@asynchronous
async def test_a_run_that_a_refusal_had_ended_is_not_gone_on_with(
    bare: BareQemu, place: Path
) -> None:
    """It was killed behind the refusal, and before it could be noted that it was over."""
    path = place / "journal"
    with Journal(path) as journal:
        run = journal.begin("one-1", "one", (an_alert("any"),))
        journal.begin_step(run, 1)
        journal.end_step(run, 1, Outcome.REFUSED)
    book = a_book('do = "nic-up"', 'do = "nic-down"', more='on-failure = "stop"')
    async with responding(bare, place, book, Policy(frozenset({Grant.NIC}))) as (_, told, __):
        await until(lambda: b'"type":"over"' in path.read_bytes(), within_s=WAIT_S)
    assert told.outcomes() == [(0, "failed"), (2, "left-out")]
