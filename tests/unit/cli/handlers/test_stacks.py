"""A kernel stack is printed with how each frame was found; a thread must be one of its process."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from qvmi.addr import Va
from qvmi.cli.exit_code import ExitCode
from qvmi.cli.handlers.stacks import stack
from qvmi.errors import GuestError
from qvmi.semantics.guest_os import Gap, StackFrame, Thread
from qvmi.testing import FakeGuest, FakeMachine, fake_process
from tests.asynchronous import asynchronous
from tests.unit.cli.streams import Captured

FRAMES = (
    StackFrame(72, 0, Va(0xFF00), "schedule", 0x10, "", True, "saved", Va(0x1000)),  # noqa: FBT003 - a literal row
    StackFrame(72, 1, Va(0xFF50), "fuse_read", 0x5, "fuse", True, "orc", Va(0x1010)),  # noqa: FBT003 - a literal row
    StackFrame(72, 2, Va(0xFF90), "", 0, "", False, "scan", None),  # noqa: FBT003 - a literal row
)
THREAD = Thread(72, 70, "S", "worker", Va(0x7000), 1.0)


class PausableMachine(FakeMachine):
    """This is a fake machine that can be told to stand still."""

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        self.calls.append("paused")
        yield
        self.calls.append("goes on")


def _machine() -> PausableMachine:
    guest = FakeGuest(processes=[fake_process(70)], threads=[THREAD], stack=FRAMES)
    return PausableMachine(guest)


@asynchronous
async def test_says_how_each_frame_was_found_and_which_are_guessed() -> None:
    captured = Captured()
    code = await stack(_machine(), captured, pid=70, thread=72, exact=False)
    assert code is ExitCode.FINE
    assert [line.split() for line in captured.result.splitlines()] == [
        ["#", "ADDRESS", "HOW", "SYMBOL"],
        ["0", "0xff00", "saved", "schedule+0x10"],
        ["1", "0xff50", "orc", "fuse_read+0x5", "[fuse]"],
        ["2", "0xff90", "scan", "(unreliable)", "-"],
    ]


@asynchronous
async def test_a_stack_that_is_not_whole_ends_with_4() -> None:
    captured, guest = Captured(json=True), FakeGuest(processes=[fake_process(72)])
    guest.show("stack", FRAMES, gaps=[Gap("task_struct.stack", None, "no code")])
    code = await stack(PausableMachine(guest), captured, pid=72, thread=None, exact=False)
    assert code is ExitCode.NOT_SEEN
    assert len(json.loads(captured.result)["items"]) == len(FRAMES)


@asynchronous
async def test_a_thread_of_another_process_is_none() -> None:
    with pytest.raises(GuestError, match="no thread 71"):
        await stack(_machine(), Captured(), pid=70, thread=71, exact=False)


@asynchronous
async def test_exact_looks_while_the_guest_stands_still() -> None:
    captured, machine = Captured(), _machine()
    await stack(machine, captured, pid=70, thread=72, exact=True)
    assert machine.calls == ["query", "paused", "query", "goes on"]  # names are looked up before
    assert "the guest stood still" in captured.messages
