"""Keeping a codepack's process running, whatever happens while it is being started."""

import asyncio
from asyncio.subprocess import PIPE
from contextlib import suppress

import pytest

from qvmi.codepacks.manifest import Restart
from qvmi.errors import CodepackError, UsageError
from qvmi.manager import supervisor as module
from qvmi.manager.orders import Hello
from qvmi.manager.pack_process import PackProcess, Words
from qvmi.manager.pack_spec import PackSpec
from qvmi.manager.supervisor import Supervisor
from tests.asynchronous import asynchronous, until

SPEC = PackSpec("pack", "none:None")


class Told:
    """This is who is told, and notes it."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def began(self, _: PackSpec, __: PackProcess) -> None:
        self.calls.append("began")

    async def stopped(self, _: PackSpec) -> None:
        self.calls.append("stopped")

    async def failed(self, _: PackSpec, problem: str) -> None:
        self.calls.append(f"failed: {problem}")

    async def given_up(self, _: PackSpec) -> None:
        self.calls.append("given up")

    async def is_machine_gone(self) -> bool:
        return False


class Starting:
    """This starts processes that wait for the end of their input, each once it may."""

    def __init__(self) -> None:
        self.may_start = asyncio.Event()
        self.asked = 0
        self.processes: list[asyncio.subprocess.Process] = []

    async def __call__(self, _: PackSpec) -> PackProcess:
        self.asked += 1
        await self.may_start.wait()
        process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE, stderr=PIPE)
        self.processes.append(process)
        return PackProcess(process, Hello(process.pid, 0, ()), Words(process.stderr))


@asynchronous
async def test_a_process_that_was_being_started_when_codepacks_were_stopped_does_not_run_on() -> (
    None
):
    told, starting, permitted = Told(), Starting(), asyncio.Event()
    permitted.set()
    supervisor = Supervisor(SPEC, starting, told, permitted)
    running = asyncio.create_task(supervisor.run())
    await until(lambda: starting.asked == 1)
    permitted.clear()
    supervisor.stop()
    starting.may_start.set()
    await until(lambda: "stopped" in told.calls)
    assert told.calls == ["stopped"]  # it has not begun, and what it held is let go of
    assert starting.processes[0].returncode is not None
    permitted.set()
    await until(lambda: "began" in told.calls)
    await ended(running)


@asynchronous
async def test_a_process_that_was_being_started_when_it_was_put_out_does_not_run_on() -> None:
    told, starting, permitted = Told(), Starting(), asyncio.Event()
    permitted.set()
    supervisor = Supervisor(SPEC, starting, told, permitted)
    running = asyncio.create_task(supervisor.run())
    await until(lambda: starting.asked == 1)
    supervisor.put_out("a flood")
    starting.may_start.set()
    await until(lambda: bool(told.calls))
    assert told.calls == ["failed: a flood"]
    assert starting.processes[0].returncode is not None
    await ended(running)


@asynchronous
async def test_what_a_stopped_codepack_held_is_let_go_of_and_it_does_not_count_as_failed() -> None:
    told, starting, permitted = Told(), Starting(), asyncio.Event()
    permitted.set()
    starting.may_start.set()
    spec = PackSpec("pack", "none:None", restart=Restart.NEVER)
    supervisor = Supervisor(spec, starting, told, permitted)
    running = asyncio.create_task(supervisor.run())
    await until(lambda: "began" in told.calls)
    permitted.clear()
    supervisor.stop()
    permitted.set()  # proven again before the process has ended
    await until(lambda: told.calls.count("began") > 1)
    assert told.calls == ["began", "stopped", "began"]
    await ended(running)


@asynchronous
async def test_a_codepack_whose_folder_is_of_no_use_is_told_to_fail_and_given_up() -> None:
    told, permitted = Told(), asyncio.Event()
    permitted.set()

    async def start(_: PackSpec) -> PackProcess:
        raise UsageError("its folder cannot be made: Permission denied")

    spec = PackSpec("pack", "none:None", max_restarts=1)
    with pytest.raises(CodepackError, match="ended 2 times in a row: its folder cannot be made"):
        await Supervisor(spec, start, told, permitted).run()
    assert told.calls == [*["failed: its folder cannot be made: Permission denied"] * 2, "given up"]


@asynchronous
async def test_the_time_until_the_next_start_is_bounded_however_often_it_has_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 1e-9)
    told, permitted = Told(), asyncio.Event()
    permitted.set()

    async def start(spec: PackSpec) -> PackProcess:
        raise CodepackError(spec.name, "no")

    ends = 1100  # 2 to that is no number of seconds
    with pytest.raises(CodepackError, match=f"ended {ends} times in a row"):
        await Supervisor(
            PackSpec("pack", "none:None", max_restarts=ends - 1), start, told, permitted
        ).run()


async def ended(running: "asyncio.Task[None]") -> None:
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
