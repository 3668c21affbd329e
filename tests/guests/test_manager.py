"""Codepacks as processes of their own under the manager: what they see, what they may, what is left."""

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

import qvmi
from qvmi.bus.message import Message
from qvmi.codepacks.alert import Alert
from qvmi.errors import IsolationNotProven
from qvmi.manager import reopening
from qvmi.manager.confinement import close_modes, own_uids
from qvmi.manager.control_service import ControlService
from qvmi.manager.isolation_watch import NOT_PROVEN, IsolationVerdict
from qvmi.manager.jail import ADVISORY
from qvmi.manager.manager import Manager, manage
from qvmi.manager.pack_process import PackProcess
from qvmi.manager.pack_spec import PackSpec
from qvmi.policy import OBSERVE, READ_ONLY
from qvmi.remote.handed_memory import HandedMemory
from tests.asynchronous import asynchronous, until
from tests.guests.lab import Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool
from tests.guests.rootkit import hide_process, show_process
from tests.proofs import proof_size

WAIT_S = 100.0
REOPENING = Path(reopening.__file__)
SERVICE_UIDS = range(61184, 61520)
"""The first of those that systemd keeps for users that exist while a service does."""
HIDDEN = PackSpec(
    "hidden-processes", "qvmi.codepacks.detectors.hidden_processes:HiddenProcesses", 0.05
)


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(GuestConfig("6.1"))


@asynccontextmanager
async def managing(
    guest: Guest, state: Path, *packs: PackSpec, proven: bool = False, allowed: bool = True
) -> AsyncIterator[Manager]:
    async def check() -> IsolationVerdict:
        return IsolationVerdict(proven=proven, why="" if proven else "this test proves nothing")

    async with (
        qvmi.attach(guest.qmp, cache=state / "cache") as machine,
        manage(
            machine,
            packs or [HIDDEN],
            vm="web",
            state=state,
            isolation=lambda _: check,
            allow_unproven=allowed,
        ) as manager,
    ):
        yield manager


async def next_of_kind(manager: Manager, kind: str, codepack: str | None = None) -> Message:
    async with asyncio.timeout(WAIT_S):
        async for message in manager:
            if message.kind == kind and codepack in (None, message.codepack):
                return message
    raise AssertionError(f"the manager ended without {kind}")


@asynchronous
async def test_a_hidden_process_is_found_by_a_codepack_in_a_process_of_its_own(
    guest: Guest, state: Path
) -> None:
    async with managing(guest, state) as manager:
        status = await next_of_kind(manager, "status", "hidden-processes")
        assert status.body["sight"] == "full"
        (process,) = manager.fleet.running.values()
        assert process.pid != os.getpid()
        hidden = hide_process(guest, "httpd")
        try:
            message = await next_of_kind(manager, "alert")
        finally:
            show_process(guest, hidden)
        cleared = await next_of_kind(manager, "cleared")
    assert message.topic.text == "qvmi/v1/web/hidden-processes/alert"
    alert = message.read_body(Alert)
    assert alert.finding.evidence[0].address == hidden.address
    assert alert.caveats == (NOT_PROVEN,)
    assert alert.held_by in {"another uid", "Landlock"}
    assert cleared.read_body(Alert).evidence_hash == alert.evidence_hash
    assert guest.monitor.running()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives codepacks uids of their own")
@asynchronous
async def test_a_codepack_gets_no_folder_of_those_that_had_its_uid_before(
    guest: Guest, state: Path
) -> None:
    packs = state / "web" / "packs"
    packs.mkdir(parents=True)
    for uid in SERVICE_UIDS:
        (packs / f"before-{uid}").mkdir()
        os.chown(packs / f"before-{uid}", uid, uid)
    async with managing(guest, state):
        given = reserved()
        owners = {uid: (packs / f"before-{uid}").stat().st_uid for uid in SERVICE_UIDS}
    taken = {uid for uid, owner in owners.items() if owner == 0}
    assert len(taken) == 2, "one for the codepack, one for its group"
    assert taken <= given
    assert all(owner == uid for uid, owner in owners.items() if uid not in taken)


def reserved() -> set[int]:
    """These are the uids that managers have reserved, by the kernel's table of locks."""
    locked = {
        line.split()[5].split(":")[2] for line in Path("/proc/locks").read_text().splitlines()
    }
    files = Path("/run/qvmi/uids").iterdir()
    return {int(file.name) for file in files if str(file.stat().st_ino) in locked}


def test_the_command_watches_with_processes_and_leaves_none(guest: Guest, state: Path) -> None:
    words = ("watch", "--placement", "process", "--for", "8", "--state", str(state), "--json")
    command = [sys.executable, "-m", "qvmi", "--qmp", guest.qmp, *words]
    ended = subprocess.run(
        [*command, "--allow-unproven-isolation"], capture_output=True, text=True, check=False
    )
    assert "policy: " in ended.stderr
    kinds = [json.loads(line)["kind"] for line in ended.stdout.splitlines()]
    assert "status" in kinds, ended.stderr
    assert "alert" not in kinds
    assert ended.returncode == 0, ended.stderr
    assert (state / guest_name(guest) / "alerts.db").exists()
    assert guest.monitor.running()


def guest_name(guest: Guest) -> str:
    """This is what the bus calls a machine that has no other name: its address's end."""
    return re.sub(r"[^a-z0-9]+", "-", guest.qmp.lower()).strip("-")[-63:].strip("-")


# ------------------------------------------------------------------------------------------- isolation


@asynchronous
async def test_no_codepack_is_started_where_isolation_is_not_proven(
    guest: Guest, state: Path
) -> None:
    with pytest.raises(IsolationNotProven, match="this test proves nothing"):
        async with managing(guest, state, allowed=False):
            raise AssertionError("it runs")
    assert not packs_of(os.getpid())


@asynchronous
async def test_a_chardev_plugged_in_to_the_bus_ends_codepacks_until_it_is_gone(
    guests: GuestPool, state: Path
) -> None:
    guest = guests.restore(GuestConfig("6.1"))
    program = ManagerProgram(guest, state, "examined")
    program.start()
    try:
        await until(lambda: program.ready() and program.alerts() > 0, within_s=WAIT_S)
        socket, _own = broker_sockets(program.process.pid)
        backend = {
            "type": "socket",
            "data": {"addr": {"type": "unix", "data": {"path": socket}}, "server": False},
        }
        guest.monitor.execute("chardev-add", id="leak", backend=backend)
        await until(lambda: not packs_of(program.process.pid), within_s=WAIT_S)
        guest.monitor.execute("chardev-remove", id="leak")
        await until(lambda: bool(packs_of(program.process.pid)), within_s=WAIT_S)
    finally:
        program.kill()
    assert b"is connected with" in (state / "log").read_bytes()


def broker_sockets(pid: int) -> list[str]:
    """These are the Unix sockets on which mosquitto listens that is a process's child, by ss."""
    (broker,) = (one for one in children_of(pid) if "mosquitto" in command_line(one))
    listening = subprocess.check_output(["ss", "-xlpH"], text=True).splitlines()
    names = [line.split()[4] for line in listening if f"pid={broker}," in line]
    return [str(Path(f"/proc/{broker}/cwd").readlink() / name) for name in names]


# ------------------------------------------------------------------------- what a codepack may hold


@asynchronous
async def test_a_pause_of_a_codepack_that_is_killed_ends_with_it(guest: Guest, state: Path) -> None:
    async with managing(guest, state, replace(HIDDEN, policy=OBSERVE)) as manager:
        await next_of_kind(manager, "status", "hidden-processes")
        manager.control.lease_s = 3600.0
        answer = await manager.control.answer(HIDDEN.name, {"type": "pause"})
        assert answer["refusal"] is None
        assert not guest.monitor.running()
        (process,) = manager.fleet.running.values()
        os.kill(process.pid, signal.SIGKILL)
        await until(guest.monitor.running, within_s=WAIT_S)
        again = await next_of_kind(manager, "status", "hidden-processes")
        assert again.body["sight"] == "full"


@asynchronous
async def test_pauses_and_breakpoints_that_nobody_renews_end(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        control = ControlService(machine, {"pack": OBSERVE}, lease_s=0.5)
        begun = await control.answer("pack", {"type": "pause"})
        assert not guest.monitor.running()
        await until(guest.monitor.running, within_s=WAIT_S)
        lease = begun["told"]["lease"]  # type: ignore[index] # as it is in JSON
        late = await control.answer("pack", {"type": "keep", "lease": lease})
        assert late["refusal"]["kind"] == "StaleView"  # type: ignore[index] # as above
        place = machine.guest.kernel.image.start
        question = {"type": "breakpoint", "place": "start", "address": place}
        assert (await control.answer("pack", question))["refusal"] is None
        await until(lambda: "gdb" not in chardevs(guest), within_s=WAIT_S)
        assert guest.monitor.running()
        await control.close()


def chardevs(guest: Guest) -> list[str]:
    """These are the names of QEMU's character devices; a gdbstub is one."""
    return [one["label"] for one in guest.monitor.execute("query-chardev")]


@asynchronous
async def test_a_lease_is_its_owners_alone_and_refusals_are_audited(
    guest: Guest, profiles: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        control = ControlService(machine, {"pack": OBSERVE, "other": READ_ONLY})
        begun = await control.answer("pack", {"type": "pause"})
        lease = begun["told"]["lease"]  # type: ignore[index] # as it is in JSON
        refused = {
            "other": ({"type": "end", "lease": lease}, "StaleView"),
            "nobody": ({"type": "registers"}, "PolicyDenied"),
            "pack": ({"type": "no-such-question"}, "BadMessage"),
        }
        for codepack, (question, kind) in refused.items():
            answer = await control.answer(codepack, dict(question))
            assert answer["refusal"]["kind"] == kind  # type: ignore[index] # as above
            assert codepack in caplog.records[-1].getMessage()
            assert caplog.records[-1].name == "qvmi.audit"
        assert not guest.monitor.running()
        await control.close()
    assert guest.monitor.running()


# --------------------------------------------------------------------------- who can write guest RAM


def tried_by(uid: int | None, descriptor: int) -> list[str]:
    """These are the ways to write that are found by a process with another Python, as another user."""
    code = (
        "import runpy, sys;"
        "ways = runpy.run_path(sys.argv[1])['ways_to_write'];"
        "print('\\n'.join(ways([int(sys.argv[2])], [])))"
    )
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "reopening.py"
        Path(folder).chmod(0o755)
        script.write_text(REOPENING.read_text())
        ended = subprocess.run(
            ["/usr/bin/python3", "-I", "-c", code, str(script), str(descriptor)],
            pass_fds=[descriptor],
            capture_output=True,
            check=True,
            cwd="/",
            text=True,
            user=uid,
            group=uid,
            extra_groups=None if uid is None else [],
        )
    return ended.stdout.split("\n")[:-1] if ended.stdout.strip() else []


@pytest.mark.parametrize("ram", ["file", "memfd"])
@asynchronous
async def test_ram_that_is_handed_to_another_uid_cannot_be_opened_for_writing(
    guests: GuestPool, ram: Literal["file", "memfd"], profiles: Path
) -> None:
    guest = guests.restore(GuestConfig("6.1", ram=ram))
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        _, (descriptor, *_) = HandedMemory.of(machine.memory)
        assert tried_by(None, descriptor), "the same user can: else this tries nothing"
        close_modes([descriptor])
        with own_uids(1) as (uid,):
            assert tried_by(uid, descriptor) == []
        assert guest.monitor.running()


@pytest.mark.parametrize("ram", ["file", "memfd"])
@asynchronous
async def test_what_keeps_codepacks_is_told_as_it_is(
    guests: GuestPool, state: Path, ram: Literal["file", "memfd"]
) -> None:
    guest = guests.restore(GuestConfig("6.1", ram=ram))
    async with managing(guest, state, proven=True) as manager:
        jail = manager.fleet.jail
        (process,) = manager.fleet.running.values() or (await first_process(manager),)
        assert (process.hello.ways_out == ()) == jail.holds
        assert manager.fleet.caveats == (() if jail.holds else (ADVISORY,))
        if jail.confinement.other_uid:
            assert os.stat(f"/proc/{process.pid}").st_uid == process.hello.uid  # noqa: PTH116 - /proc does not wait
        assert jail.holds or ram == "memfd"


async def first_process(manager: Manager) -> PackProcess:
    await until(lambda: bool(manager.fleet.running), within_s=WAIT_S)
    return next(iter(manager.fleet.running.values()))


# ----------------------------------------------------------------------------------------- kill -9


def children_of(pid: int) -> list[int]:
    """These are the processes that name this one as their parent, by /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = stat.read_text().rpartition(")")
            if int(rest.split()[1]) == pid and "qemu" not in name:
                found.append(int(stat.parent.name))
    return found


def command_line(pid: int) -> str:
    """This is how a process was called; empty for one that is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def packs_of(pid: int) -> list[int]:
    """These are the processes of codepacks of a manager."""
    return [one for one in children_of(pid) if "pack_program" in command_line(one)]


def is_there(pid: int) -> bool:
    """This tells whether a process runs: one that was killed and is not waited for yet does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


class ManagerProgram:
    """This is the manager as a program, started again when it is killed."""

    def __init__(self, guest: Guest, state: Path, *words: str) -> None:
        module = "tests.guests.managed"
        self._command = [sys.executable, "-m", module, guest.qmp, str(state), *words]
        self._log = state / "log"
        self.starts = 0

    def start(self) -> None:
        self.starts += 1
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)

    def ready(self) -> bool:
        assert self.process.poll() is None, self._log.read_text()
        return self._log.read_text().count("ready") == self.starts

    def alerts(self) -> int:
        """This is how many alerts were shown."""
        return self._log.read_text().count("alert ")

    def kill(self) -> list[int]:
        """This kills it, and gives the processes that it had."""
        had = children_of(self.process.pid)
        self.process.kill()
        self.process.wait()
        return had


def kept(path: Path, query: str) -> list[str]:
    """These are what a database holds that nobody has open."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        return [one for (one,) in database.execute(query)]


class Killing:
    """This kills the manager, its broker and its codepack in turns, and notes what was accepted."""

    def __init__(self, guest: Guest, state: Path) -> None:
        self.program = ManagerProgram(guest, state)
        self.accepted: set[str] = set()
        self.outbox = state / "web/packs/noisy/outbox.db"
        self._guest = guest
        self._chance = random.Random(20261129)

    async def turn(self, number: int) -> None:
        await until(self.program.ready, within_s=WAIT_S)
        await asyncio.sleep(self._chance.uniform(0.3, 1.0))
        victims = children_of(self.program.process.pid)
        if number % 2 and victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._chance.choice(victims), signal.SIGKILL)
            return
        await self.end()
        if self.outbox.exists():
            self.accepted.update(kept(self.outbox, "SELECT id FROM message"))
        self.program.start()

    async def end(self) -> None:
        """This kills the manager, and waits until nothing of it is left."""
        left = self.program.kill()
        await until(lambda: not any(map(is_there, left)), within_s=WAIT_S)
        await until(self._guest.monitor.running, within_s=WAIT_S)


@pytest.mark.timeout(1800)
@asynchronous
async def test_no_kill_loses_an_alert_or_leaves_anything_behind(
    guests: GuestPool, state: Path, proof_count: Callable[[int], None]
) -> None:
    guest = guests.restore(GuestConfig("6.1"))
    killing = Killing(guest, state)
    program = killing.program
    program.start()
    try:
        for number in range(proof_size(ci=6, full=100)):
            await killing.turn(number)
        await until(program.ready, within_s=WAIT_S)
        shown = program.alerts()
        await until(lambda: program.alerts() > shown + 3, within_s=WAIT_S)
    finally:
        await killing.end()
    handled = Counter(kept(state / "web/alerts.db", "SELECT id FROM alert"))
    held = set(kept(killing.outbox, "SELECT id FROM message"))
    assert set(handled.values()) == {1}
    assert killing.accepted - held <= set(handled)
    proof_count(len(handled))
