"""The pause of a playbook: it ends with its resume, with the run, or when it has lasted too long.

Whoever is killed in it leaves the guest to the guardian, as in every pause.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

__all__ = ["Pausable", "Stillness"]


class Pausable(Protocol):
    """This is a machine that can stand still."""

    def paused(self) -> AbstractAsyncContextManager[object]:
        """This keeps the guest from running for as long as the block lasts."""
        ...


class Stillness:
    """This is for how long one run has let the guest stand still.

    Args:
        machine: whose guest.
        ended_by_time: is called when a pause has lasted too long and the guest runs again, with
            for how long it stood still, in seconds.
    """

    def __init__(self, machine: Pausable, ended_by_time: Callable[[float], None]) -> None:
        self._machine = machine
        self._ended_by_time = ended_by_time
        self._release = asyncio.Event()
        self._holding: asyncio.Task[None] | None = None
        self._ends: float | None = None
        self._began: float | None = None
        self._before_s = 0.0

    @property
    def total_s(self) -> float:
        """This is for how long it was, or is so far, in seconds."""
        now = 0.0 if self._began is None else time.monotonic() - self._began
        return self._before_s + now

    @property
    def is_held(self) -> bool:
        """This tells whether the guest stands still for the run."""
        return self._began is not None

    @property
    def left_s(self) -> float | None:
        """This is how long the pause may last yet, in seconds; None where there is none."""
        if self._ends is None or not self.is_held:
            return None
        return max(0.0, self._ends - asyncio.get_running_loop().time())

    async def begin(self, longest_s: float) -> None:
        """This stops the guest for at most so many seconds, counted from here.

        Raises:
            QvmiError: it cannot be stopped, and runs.
        """
        self._release = asyncio.Event()
        self._ends = asyncio.get_running_loop().time() + longest_s
        stands: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        holding = asyncio.create_task(self._hold(stands, self._ends), name="qvmi-stillness")
        self._holding = holding
        try:
            await asyncio.wait({holding, stands}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._release.set()
            await asyncio.wait({holding})
            raise
        if not stands.done():
            self._holding = None
            await holding  # which says why it does not stand still

    async def end(self) -> None:
        """This lets the guest run on, where it stands still for the run.

        Raises:
            QvmiError: somebody else has let it run meanwhile, or QEMU did not answer.
        """
        holding, self._holding = self._holding, None
        if holding is not None:
            self._release.set()
            await holding

    async def _hold(self, stands: asyncio.Future[None], ends: float) -> None:
        began = time.monotonic()
        timed_out = False
        try:
            async with self._machine.paused():
                self._began = began
                stands.set_result(None)
                try:
                    async with asyncio.timeout_at(ends):
                        await self._release.wait()
                except TimeoutError:
                    timed_out = True
        finally:
            if self._began is not None:
                self._before_s += time.monotonic() - began
                self._began = None
            if timed_out:
                self._ended_by_time(self._before_s)
