"""Waiting for the next look: for its time, or for somebody who wants it sooner."""

import asyncio
from contextlib import suppress

__all__ = ["Wake"]


class Wake:
    """This is waited for by one, and rung by anybody on the same event loop."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """This ends the waiting, of now or of the next time."""
        self._rung.set()

    async def wait(self, due: float, *, not_before: float) -> None:
        """This waits until a look is due, or wanted.

        Args:
            due: when it is in any case, on the event loop's clock.
            not_before: when it may be at the earliest, though it is wanted.
        """
        loop = asyncio.get_running_loop()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(due):
                await self._rung.wait()
        await asyncio.sleep(min(due, not_before) - loop.time())
        self._rung.clear()
