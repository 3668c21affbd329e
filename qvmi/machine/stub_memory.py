"""Guest memory by the gdbstub, for which the guest stands still.

Outside of any pause a read begins one of its own, which ends when no other read has followed for a
while.
"""

import asyncio
from contextlib import suppress
from functools import partial
from typing import Final

from qvmi.addr import PAGE_SIZE, Pa
from qvmi.errors import QvmiError
from qvmi.gdbstub.client import GdbClient
from qvmi.machine.completion import ended
from qvmi.machine.holding.pause import RunControl
from qvmi.machine.holding.stub_loan import StubLoan

__all__ = ["StubMemory"]

_LINGERS_S: Final = 0.005
"""How long the guest stands still for another read to follow: to stop it anew takes about as long."""
_BLOCK: Final = 4 * PAGE_SIZE
"""Read at once: half of it is as fast as a page, and slabs and page tables lie side by side."""


class StubMemory:
    """This is memory as the gdbstub tells it.

    Args:
        run_control: stops the guest and lets it run.
        stub: lends the gdbstub within a pause.
    """

    stops_guest = True
    block = _BLOCK

    def __init__(self, run_control: RunControl, stub: StubLoan) -> None:
        self._run_control = run_control
        self._stub = stub
        self._lingering: asyncio.Task[None] | None = None
        self._readers = 0
        self._last_read = 0.0

    @property
    def description(self) -> str:
        """This says in a few words how the bytes are read."""
        return f"the gdbstub {self._stub.name}, for which the guest stands still"

    async def fetch(self, pa: Pa, size: int) -> bytes:
        """This asks for exactly so many bytes, all of them RAM.

        Raises:
            AttachError: the gdbstub is held by another debugger, or cannot be reached.
            PauseError: the guest cannot be stopped safely.
            MachineGone, QmpTimeout, GdbstubTimeout: QEMU did not answer.
            GuestRunning: somebody else has let the guest run meanwhile.
        """
        if self._run_control.pause is None and (self._lingering is None or self._lingering.done()):
            self._lingering = asyncio.create_task(self._linger(), name="qvmi stub")
        self._readers += 1
        try:
            async with self._run_control.paused():
                return await self._stub.do(partial(GdbClient.read_physical, pa=pa, size=size))
        finally:
            self._readers -= 1
            self._last_read = asyncio.get_running_loop().time()

    async def let_go(self) -> None:
        """This ends a pause that no reader wants any more."""
        lingering = self._lingering
        if lingering is not None:
            lingering.cancel()
            cancelled = await ended(lingering)
            if cancelled is not None:
                raise cancelled

    def close(self) -> None:
        """This has nothing to remove: the stub was left with the last pause."""

    async def _linger(self) -> None:
        """This keeps the guest from running until no read follows any more."""
        loop = asyncio.get_running_loop()
        # What is wrong with the pause is told to whoever reads, or asks for the run state.
        with suppress(QvmiError):
            async with self._run_control.paused():
                # Each read moves the end, and thousands of them follow each other.
                while self._readers or loop.time() < self._last_read + _LINGERS_S:  # noqa: ASYNC110
                    await asyncio.sleep(_LINGERS_S)
