"""Seeing a guest at one moment: a walk within a pause, or over a copy of all that it reads.

A short walk is done while the guest stands still: that takes less time than to copy anything. For a
long one the guest is stopped for as long as it takes to copy the pages that the walk reads, which a
walk over the running guest has shown. If it then reads others, the whole set is copied anew: pages
of different pauses are never mixed.

Where memory has to be asked for, to copy the pages takes as long as to walk them, since they are kept
for the pause: the walk is done within it, in a thread.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Final, Never, TypeVar

from qvmi.errors import PauseError, QueryTimeout, QvmiError
from qvmi.machine.holding.pause import Pause, PauseMaker
from qvmi.machine.query import captured, with_pause
from qvmi.machine.ways.remote_memory import RemoteMemory
from qvmi.machine.worker import in_worker
from qvmi.memory.page_copy import PageCopy, RecordedMemory
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.view import View

__all__ = ["IN_A_WALK", "Capture"]

Result = TypeVar("Result")
Walk = Callable[[LinuxGuest], Result]
"""Looks at a guest and returns what it found."""

IN_A_WALK: Final = ContextVar("qvmi walks a guest for capture()", default=False)
"""Whether the code that runs is a walk given to `Capture`, which its machine waits for."""
_SHORT_S: Final = 0.005
"""A walk that takes no longer is done while the guest stands still."""
_LONGEST_S: Final = 0.25
"""A walk that takes longer than that is not done so, whatever it reads."""
_LONGEST_REMOTE_S: Final = 5.0
"""The same where each page takes a millisecond: a list of 5,000 processes."""
_ROUNDS: Final = 4
"""Copies that are made until one has all that the walk reads: a live guest changes in between."""


class Capture:
    """This captures one guest.

    Args:
        run_control: stops the guest and lets it run.
        guest: as it is seen live.
        still: makes a view of a pause.
    """

    def __init__(
        self, run_control: PauseMaker, guest: LinuxGuest, still: Callable[[Pause], View]
    ) -> None:
        self._run_control = run_control
        self._guest = guest
        self._still = still

    async def of(self, walk: Walk[Result]) -> Result:
        """This does a walk at one moment.

        Raises:
            PauseError: it takes too long, and reads something else each time.
            QvmiError: whatever the walk, or the conversation with QEMU, raises.
        """
        with _walking():
            return await self._of(walk)

    async def _of(self, walk: Walk[Result]) -> Result:
        await self._run_control.prepare()
        if isinstance(self._guest.view.memory, RemoteMemory):
            return await self._in_a_pause_elsewhere(walk)
        took_s = await in_worker(partial(_rehearse, walk, self._guest))
        if took_s <= _SHORT_S:
            return await self._in_a_pause(walk)
        answer = await self._of_a_copy(walk)
        if answer is not None:
            return answer()
        if took_s > _LONGEST_S:
            raise PauseError(
                f"{_ROUNDS} copies did not hold all that the walk reads, and it takes"
                f" {took_s * 1000:.0f} ms, more than the {_LONGEST_S * 1000:.0f} ms for which the"
                " guest may stand still; use paused()"
            )
        return await self._in_a_pause(walk)

    async def _in_a_pause(self, walk: Walk[Result]) -> Result:
        async with self._run_control.paused() as pause:
            view = self._still(pause)
            answer = walk(self._guest.over(captured(view, view.memory)))
        return with_pause(answer, pause.lasted_s)

    async def _in_a_pause_elsewhere(self, walk: Walk[Result]) -> Result:
        async with self._run_control.paused() as pause:
            view = self._still(pause)
            guest = self._guest.over(captured(view, view.memory))
            try:
                answer = await in_worker(lambda: walk(guest), timeout_s=_LONGEST_REMOTE_S)
            except QueryTimeout as error:
                raise PauseError(
                    f"the walk takes more than the {_LONGEST_REMOTE_S:g} s for which the guest may"
                    f" stand still, its memory read by {view.memory.description}; use paused()"
                ) from error
        return with_pause(answer, pause.lasted_s)

    async def _of_a_copy(self, walk: Walk[Result]) -> Callable[[], Result] | None:
        """This gives or raises what comes of a walk over a copy; None where no copy held it all."""
        live = self._guest.view
        recorded = RecordedMemory(live.memory)
        recording = self._guest.over(replace(live, memory=recorded))
        await in_worker(partial(_rehearse, walk, recording))
        pages = recorded.pages
        for _ in range(_ROUNDS):
            async with self._run_control.paused() as pause:
                view = self._still(pause)
                copy = PageCopy(live.memory, pages)
            of_copy = replace(captured(view, copy), require_current=live.require_current)
            answer = await in_worker(partial(_attempt, walk, self._guest.over(of_copy), pause))
            if not copy.missing:
                return answer
            pages |= copy.missing
        return None


@contextmanager
def _walking() -> Iterator[None]:
    """This marks what is called within the block, also in the threads of a worker."""
    before = IN_A_WALK.set(True)
    try:
        yield
    finally:
        IN_A_WALK.reset(before)


def _rehearse(walk: Walk[object], guest: LinuxGuest) -> float:
    """This walks the running guest and says how long it took, in seconds; what it finds is dropped.

    What such a walk stumbles over may be a change in its midst. If it is not, it comes again.
    """
    began = time.monotonic()
    with suppress(QvmiError):
        walk(guest)
    return time.monotonic() - began


def _attempt(walk: Walk[Result], guest: LinuxGuest, pause: Pause) -> Callable[[], Result]:
    """This walks a copy, and keeps for later what comes of it: it may turn out that pages miss."""
    try:
        answer = walk(guest)
    except QvmiError as error:
        return partial(_raise, error)
    return partial(with_pause, answer, pause.lasted_s)


def _raise(error: QvmiError) -> Never:
    raise error
