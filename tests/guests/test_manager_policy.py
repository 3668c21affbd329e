"""The manager asks a gate of each codepack's own: its rates, ranges and longest pause count there."""

import asyncio
import json
import logging
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest

import qvmi
from qvmi.bus.message import Message
from qvmi.codepacks.manifest import Restart
from qvmi.errors import CodepackError, PolicyDenied, StaleView
from qvmi.manager.control_service import ControlService
from qvmi.manager.manager import Manager, manage
from qvmi.manager.pack_spec import PackSpec
from qvmi.policy import OBSERVE, READ_ONLY, AddressRange, Grant, Limits, Policy, Space
from qvmi.remote.remote_machine import RemoteMachine
from qvmi.semantics.guest_os import GuestFacts
from tests.asynchronous import asynchronous, until
from tests.command_line import qvmi as qvmi_command
from tests.contract.machines import PACK, remote_machine
from tests.guests.lab import Guest, GuestConfig, Lab
from tests.guests.managed import NOISY
from tests.guests.pool import GuestPool
from tests.guests.test_signed_packs import first_alert_of, running, signed

WAIT_S = 100.0
RARELY = Limits(per_second=0.0001)
"""Once, and then not again in any test."""

Told = dict[str, object]


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(GuestConfig("6.1"))


@asynccontextmanager
async def managing(guest: Guest, state: Path, *packs: PackSpec) -> AsyncIterator[Manager]:
    async with (
        qvmi.attach(guest.qmp, cache=state / "cache") as machine,
        manage(machine, packs, vm="web", state=state, allow_unproven=True) as manager,
        asyncio.timeout(WAIT_S),
    ):
        yield manager


@asynccontextmanager
async def serving(
    guest: Guest, profiles: Path, **policies: Policy
) -> AsyncIterator[ControlService]:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        control = ControlService(machine, policies, lease_s=3600.0)
        try:
            yield control
        finally:
            await control.close()


def refusal(answer: Told) -> str:
    """This is the kind of a refusal; empty for an answer."""
    refused = answer["refusal"]
    return str(refused["kind"]) if isinstance(refused, dict) else ""


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """These are the refusals that the audit log was told."""
    records = (one for one in caplog.records if one.name == "qvmi.audit")
    return [one.getMessage() for one in records if one.getMessage().startswith("refused: ")]


def is_empty(folder: Path) -> bool:
    return not list(folder.iterdir())


@asynchronous
async def test_each_codepack_has_rates_of_its_own(
    guest: Guest, profiles: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rare = READ_ONLY.within(Grant.READ_REGISTERS, RARELY)
    async with serving(guest, profiles, one=rare, other=rare) as control:
        for codepack in ("one", "other"):
            assert not refusal(await control.answer(codepack, {"type": "registers"}))
            await control.forget(codepack)  # as when its process has ended and is started again
            answer = await control.answer(codepack, {"type": "registers"})
            assert refusal(answer) == "PolicyDenied"
            assert not refusal(await control.answer(codepack, {"type": "run-state"}))
    assert said(caplog) == [
        f"refused: codepack {name}: read registers: not granted"
        " (grant 'read-registers': more than 0.0001 times a second)"
        for name in ("one", "other")
    ]


@asynchronous
async def test_a_breakpoint_lies_within_the_ranges_of_its_codepack(
    guest: Guest, profiles: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        start = machine.guest.kernel.image.start
        within = Limits(ranges=(AddressRange(Space.VIRTUAL, start, 16),))
        policy = OBSERVE.within(Grant.BREAKPOINT, within)
        control = ControlService(machine, {"pack": policy})
        question: Told = {"type": "breakpoint", "place": "start", "address": start}
        assert not refusal(await control.answer("pack", question))
        for address, kind in [(start + 16, "PolicyDenied"), (-1, "UsageError")]:
            answer = await control.answer("pack", question | {"address": address})
            assert refusal(answer) == kind
        await control.close()
    (refused,) = said(caplog)
    assert "outside of its ranges: virtual" in refused
    assert guest.monitor.running()


@asynchronous
async def test_a_pause_ends_when_it_has_lasted_as_long_as_is_granted_though_it_is_renewed(
    guest: Guest, profiles: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = OBSERVE.within(Grant.PAUSE, Limits(longest_s=5.0))
    async with serving(guest, profiles, pack=short, other=OBSERVE) as control:
        begun = await control.answer("pack", {"type": "pause"})
        told = begun["told"]
        assert isinstance(told, dict)
        assert not guest.monitor.running()
        assert told["lasts_s"] <= 5.0
        beside = await control.answer("pack", {"type": "pause"})
        assert refusal(beside) == "PolicyDenied", "two pauses in a row would be one that is longer"
        keep: Told = {"type": "keep", "lease": told["lease"]}
        while not refusal(await control.answer("pack", dict(keep))):  # noqa: ASYNC110 - a codepack does
            await asyncio.sleep(0.05)
        await until(guest.monitor.running, within_s=WAIT_S)
        await until(lambda: "longer than 5 s" in said(caplog)[-1], within_s=WAIT_S)
        assert "it pauses the guest already, and may for 5 s at once" in said(caplog)[0]
        later = await control.answer("pack", {"type": "pause"})
        assert not refusal(later)


class Asking(logging.Handler):
    """This asks the guest at each record of the audit log whether it runs."""

    def __init__(self, guest: Guest) -> None:
        super().__init__()
        self.seen: list[tuple[str, bool]] = []
        self._guest = guest

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append((record.getMessage(), self._guest.monitor.running()))


@pytest.mark.parametrize("end", ["its time is over", "its codepack is gone"])
@asynchronous
async def test_the_guest_runs_before_the_audit_log_is_told_why_which_may_take_long(
    guest: Guest, profiles: Path, end: str
) -> None:
    short = OBSERVE.within(Grant.PAUSE, Limits(longest_s=0.5 if end == "its time is over" else 600))
    asking = Asking(guest)
    async with serving(guest, profiles, pack=short) as control:
        assert not refusal(await control.answer("pack", {"type": "pause"}))
        logging.getLogger("qvmi.audit").addHandler(asking)
        try:
            if end == "its codepack is gone":
                await control.forget("pack")
            await until(lambda: bool(asking.seen), within_s=WAIT_S)
        finally:
            logging.getLogger("qvmi.audit").removeHandler(asking)
    ((text, ran),) = asking.seen
    assert ran, text


@asynchronous
async def test_a_codepack_whose_pause_was_ended_is_told_that_its_view_is_stale(
    guest: Guest, profiles: Path
) -> None:
    short = OBSERVE.within(Grant.PAUSE, Limits(longest_s=2.0))

    async def hold_on(remote: RemoteMachine) -> None:
        async with remote.paused() as view:
            await until(guest.monitor.running, within_s=WAIT_S)
            with pytest.raises(StaleView):
                view.require_current()

    async with (
        qvmi.attach(guest.qmp, cache=profiles) as machine,
        remote_machine(machine, profiles, {PACK: short}, lease_s=3600.0) as remote,
    ):
        with pytest.raises(StaleView):
            await hold_on(remote)
    assert guest.monitor.running()


@asynchronous
async def test_registers_by_the_gdbstub_are_refused_where_a_pause_is_bounded(
    guest: Guest, profiles: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = OBSERVE.within(Grant.PAUSE, Limits(longest_s=5.0))
    async with serving(guest, profiles, pack=short, other=OBSERVE) as control:
        question: Told = {"type": "registers", "system": True}
        assert not refusal(await control.answer("other", question))
        assert refusal(await control.answer("pack", question)) == "PolicyDenied"
    assert "nobody knows whether it takes longer than 5 s" in said(caplog)[-1]


@pytest.mark.parametrize(
    "limits",
    [
        Limits(ranges=(AddressRange(Space.PHYSICAL, 0x1000, 0x1000),)),
        Limits(bytes_per_second=4096.0),
        None,
    ],
    ids=["a range", "a rate", "nothing"],
)
@asynchronous
async def test_who_may_not_read_all_memory_is_not_given_it_but_refused(
    guest: Guest, profiles: Path, caplog: pytest.LogCaptureFixture, limits: Limits | None
) -> None:
    registers = Policy(frozenset({Grant.READ_REGISTERS}))
    policy = registers if limits is None else registers.within(Grant.READ_MEMORY, limits)
    with tempfile.TemporaryDirectory() as state:
        async with qvmi.attach(guest.qmp, cache=profiles) as machine:
            with pytest.raises(PolicyDenied, match="be given the guest's RAM"):
                async with manage(machine, [replace(NOISY, policy=policy)], state=Path(state)):
                    pytest.fail("it runs")
        assert is_empty(Path(state)), "not even a folder was made for it"
    assert len(said(caplog)) == 1


# ------------------------------------------------------------------------------ who may read memory alone

ONLY_MEMORY = Policy(frozenset({Grant.READ_MEMORY}))


def placed(facts: GuestFacts) -> tuple[object, ...]:
    """This is which kernel it is, and where."""
    where = (facts.kernel_base, facts.page_table_root, facts.page_table_isolation, facts.paging)
    return (facts.banner, facts.architecture, *where)


@pytest.mark.parametrize(
    "config",
    [GuestConfig("6.1"), GuestConfig("6.12-arm64", machine="virt")],
    ids=["x86_64", "aarch64"],
)
@asynchronous
async def test_who_may_read_memory_alone_understands_the_guest_and_is_told_no_register(
    guests: GuestPool, profiles: Path, config: GuestConfig, caplog: pytest.LogCaptureFixture
) -> None:
    one = guests.restore(config)
    truth = {task.pid for task in one.truth().processes}
    pausing = Policy(frozenset({Grant.READ_MEMORY, Grant.PAUSE}))
    async with qvmi.attach(one.qmp, cache=profiles / "manager") as machine:
        for cache in ("cold", "cold"):  # the second time it is known already
            async with remote_machine(machine, profiles / cache, {PACK: pausing}) as remote:
                assert truth <= {task.pid for task in remote.guest.processes()}
                assert placed(remote.guest.facts()) == placed(machine.guest.facts())
                assert said(caplog) == []
                assert remote.view.vcpus == remote.guest.view.vcpus == ()
                async with remote.paused() as view:
                    assert view.vcpus == ()
                    assert remote.guest.processes().items
                with pytest.raises(PolicyDenied):
                    await remote.registers()
                caplog.clear()
        control = ControlService(machine, {PACK: ONLY_MEMORY, "none": Policy(frozenset())})
        assert refusal(await control.answer("none", {"type": "system"})) == "PolicyDenied"
        told = (await control.answer(PACK, {"type": "system"}))["told"]
        assert isinstance(told, dict)
        vcpus = next(vcpu for vcpu in told["vcpus"].values() if vcpu)
        for vcpu in vcpus:
            general = [vcpu.get(name) for name in ("rip", "rsp", "rax", "r12", "pc", "sp", "cpsr")]
            assert not any([*general, *vcpu.get("x", ()), vcpu.get("cr2"), vcpu.get("gs_base")])


@asynchronous
async def test_a_codepack_that_may_read_memory_alone_sees_in_a_process_of_its_own(
    guest: Guest, state: Path
) -> None:
    async with managing(guest, state, replace(NOISY, policy=ONLY_MEMORY)) as manager:
        told = await next_that(manager, lambda one: one.codepack == NOISY.name)
        assert (told.kind, told.body.get("sight")) == ("status", "full")


# ------------------------------------------------------------------ what the process of a codepack is held to


@asynchronous
async def test_a_codepack_that_floods_with_its_secret_is_put_out_killed_and_told_of(
    guest: Guest, state: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qvmi.bus.throttle.MAX_PER_S", 200)
    flooding = PackSpec("flooding", "tests.guests.flooding_pack:Flooding", 0.1, max_restarts=0)
    async with managing(guest, state, NOISY, flooding) as manager:
        told = await next_that(manager, lambda one: "codepack flooding" in problem_of(one))
        assert told.topic.text == "qvmi/v1/web/manager/status"
        assert "published more than 200 messages in a second, and is put" in problem_of(told)
        left = set(manager.fleet.running)
        await next_that(manager, lambda one: (one.kind, one.codepack) == ("alert", NOISY.name))
        assert left == {NOISY.name}
    assert any(
        one.getMessage().startswith("throttled on the bus: web.flooding ")
        for one in caplog.records
        if one.name == "qvmi.audit"
    )
    assert guest.monitor.running()


def problem_of(message: Message) -> str:
    """This is what a status says is wrong."""
    return str(message.body.get("problem", ""))


async def next_that(manager: Manager, fits: Callable[[Message], bool]) -> Message:
    async for message in manager:
        if fits(message):
            return message
    raise AssertionError("the manager ended before")


@asynchronous
async def test_a_codepack_gets_no_more_memory_than_its_manifest_says(
    guest: Guest, state: Path
) -> None:
    limit = 256 << 20
    modest = PackSpec("greedy", GREEDY, 0.05, memory_bytes=limit)
    async with managing(guest, state, modest) as manager:
        told = await next_that(manager, has_looked)
        assert told.body["sight"] == "failed"
        assert "MemoryError" in problem_of(told)
        (process,) = manager.fleet.running.values()
        (line,) = (one for one in limits_of(process.pid) if one.startswith("Max data size"))
        assert line.split()[3:5] == [str(limit), str(limit)]
    unlimited = PackSpec("greedy", GREEDY, 0.05)
    async with managing(guest, state, unlimited) as manager:
        told = await next_that(manager, has_looked)
        assert told.body["sight"] == "full", "else the limit was not what stopped it"


def has_looked(message: Message) -> bool:
    """This tells whether a status is of a look that was not too slow on a busy host."""
    return message.codepack == "greedy" and message.body["sight"] in {"failed", "full"}


GREEDY = "tests.guests.unruly_packs:Greedy"
HANGING = "tests.guests.unruly_packs:Hanging"


def limits_of(pid: int) -> list[str]:
    """These are the limits of a process, by the kernel."""
    return Path(f"/proc/{pid}/limits").read_text().splitlines()


@pytest.mark.parametrize(
    ("restart", "starts"), [(Restart.NEVER, 1), (Restart.ON_FAILURE, 3), (Restart.ALWAYS, 3)]
)
@asynchronous
async def test_a_look_that_holds_the_interpreter_ends_with_its_process_which_starts_again_as_told(
    guest: Guest, state: Path, restart: Restart, starts: int
) -> None:
    hanging = PackSpec("hanging", HANGING, 0.05, restart=restart, max_restarts=2, look_s=0.2)
    async with managing(guest, state, hanging) as manager:
        with pytest.raises(CodepackError, match=f"ended {starts} times in a row"):
            await next_that(manager, lambda one: one.kind == "alert")
    assert (state / "web/packs/hanging/looks").read_text() == "x" * starts
    assert guest.monitor.running()


@pytest.mark.parametrize(("restart", "starts"), [(Restart.ON_FAILURE, 1), (Restart.ALWAYS, 2)])
@asynchronous
async def test_a_process_that_ends_without_a_failure_starts_again_only_where_that_is_said(
    guest: Guest, state: Path, restart: Restart, starts: int
) -> None:
    leaving = PackSpec("leaving", LEAVING, 0.05, restart=restart, max_restarts=1)
    async with managing(guest, state, leaving) as manager:
        with pytest.raises(CodepackError, match=f"ended {starts} times in a row"):
            await next_that(manager, lambda one: one.kind == "alert")


LEAVING = "tests.guests.unruly_packs:Leaving"


# ----------------------------------------------------------------------------- codepacks of somebody else's


def pack_processes(manager: int) -> list[int]:
    """These are the processes of the codepacks of a manager, by pgrep."""
    found = subprocess.check_output(["pgrep", "-P", str(manager), "-f", "pack_program"], text=True)
    return [int(pid) for pid in found.split()]


def sees_again(codepack: str, lines: IO[str]) -> None:
    """This waits until one that was started again sees what it had found.

    It knows that the alert stands; where it was killed before it could note that, it raises it again.
    """
    for line in lines:
        document = json.loads(line)
        if document["codepack"] != codepack:
            continue
        body = document["body"]
        if document["kind"] == "alert" or (body["sight"], body.get("standing")) == ("full", 1):
            return
    raise AssertionError("it ended without seeing anything")


def test_a_signed_codepack_runs_in_a_process_of_its_own_of_the_bytes_that_were_verified(
    guest: Guest, state: Path, tmp_path: Path
) -> None:
    folder, keys = signed(tmp_path)
    log = str(tmp_path / "audit.log")
    watch = ("watch", "--load", str(folder), "--keys", keys, "--json", "--placement", "process")
    allowed = ("--state", str(state), "--allow-unproven-isolation", "--set", "watch-init.pid=2")
    with running("--qmp", guest.qmp, "--audit", log, *watch, *allowed) as process:
        assert process.stdout is not None
        first = first_alert_of("watch-init", process.stdout)
        # What lies in the folder by now is of no account, also for a process that is started later.
        (folder / "rules.py").write_text("raise SystemExit('not what was signed')")
        shutil.rmtree(folder / "data")
        for pid in pack_processes(process.pid):
            os.kill(pid, signal.SIGKILL)
        sees_again("watch-init", process.stdout)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(WAIT_S) == 1
    body = first["body"]
    assert isinstance(body, dict)
    assert (
        body["finding"]["claim"] == "kthreadd runs"
    )  # which the option says, and not its baseline
    assert "watch-init 1.2.0, signed by key" in Path(log).read_text()
    assert guest.monitor.running()


def test_an_altered_codepack_gets_no_process(guest: Guest, state: Path, tmp_path: Path) -> None:
    folder, keys = signed(tmp_path)
    (folder / "rules.py").write_text("raise SystemExit('not what was signed')")
    watch = ("watch", "--load", str(folder), "--keys", keys, "--placement", "process")
    allowed = ("--state", str(state), "--allow-unproven-isolation", "--for", "60")
    done = qvmi_command("--qmp", guest.qmp, *watch, *allowed)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.endswith("it is not as it was signed: rules.py altered\n")
    assert done.stderr.count("rules.py altered") == 1
    assert is_empty(state)
