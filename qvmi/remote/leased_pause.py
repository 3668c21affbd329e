"""A pause by the manager's hand, which ends by itself when whoever asked for it does not go on to ask.

A lease is counted here from the moment before it was asked for, there from the moment after: so nobody
here takes a guest for one that stands still which the manager has let run.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from qvmi.errors import QvmiError, StaleView
from qvmi.machine.completion import ended
from qvmi.machine.holding.pause import Pause
from qvmi.remote.asking import Asking
from qvmi.remote.messages import BeginPause, EndLease, KeepLease, LeaseTold, PauseTold

if TYPE_CHECKING:
    from qvmi.arch.registers import Registers

__all__ = ["LeasedPauses", "keep"]

_RENEWALS: Final = 4
"""Times that a lease is renewed before it would end: one or two may be lost."""


class LeasedPauses:
    """This stops the guest by asking the manager.

    Args:
        asking: how it is asked.

    Attributes:
        stood_still_s: for how long the guest has stood still by what was asked here, in seconds.
        vcpus: what the vCPUs hold in the pause that goes on.
    """

    def __init__(self, asking: Asking) -> None:
        self.stood_still_s = 0.0
        self.vcpus: tuple[Registers, ...] = ()
        self._asking = asking
        self._lock = asyncio.Lock()
        self._lease: _Lease | None = None
        self._pause: Pause | None = None
        self._holders = 0

    async def prepare(self) -> None:
        """This does nothing: the manager has prepared what there is to prepare."""

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[Pause]:
        """This keeps the guest from running for as long as the block lasts; blocks may nest.

        Raises:
            PolicyDenied: this codepack may not.
            PauseError: the guest cannot be stopped safely.
            StaleView: somebody has let it run meanwhile, such as the manager, as the lease ended;
                raised at the block's end.
            BusError: the manager does not answer.
        """
        entering = asyncio.ensure_future(self._enter())
        cancelled = await ended(entering)
        pause = entering.result()
        try:
            if cancelled is not None:
                raise cancelled
            yield pause
        finally:
            leaving = asyncio.ensure_future(self._leave())
            cancelled = await ended(leaving)
            leaving.result()
            if cancelled is not None:
                raise cancelled

    async def _enter(self) -> Pause:
        async with self._lock:
            if self._pause is None:
                asked = time.monotonic()
                told = await self._asking.ask(BeginPause(), PauseTold)
                self._lease = _Lease(self._asking, told.lease, asked, told.lasts_s)
                self.vcpus = told.vcpus.vcpus
                self._pause = Pause(ours=told.ours, count=self._lease.ends, at=told.at)
            self._holders += 1
            return self._pause

    async def _leave(self) -> None:
        async with self._lock:
            self._holders -= 1
            if self._holders or self._pause is None or self._lease is None:
                return
            pause, self._pause = self._pause, None
            lease, self._lease = self._lease, None
            try:
                await lease.give_back()
            finally:
                pause.end()
                self.stood_still_s += pause.lasted_s


class _Lease:
    """This is a lease that is renewed until it is given back, or until that fails."""

    def __init__(self, asking: Asking, name: str, asked: float, lasts_s: float) -> None:
        self._asking = asking
        self._name = name
        self._until = asked + lasts_s
        self._keeping = asyncio.create_task(
            keep(self._renew, lasts_s / _RENEWALS), name="qvmi-lease"
        )

    def ends(self) -> int:
        """This counts how often the lease has ended: 0 while it holds."""
        return int(self._keeping.done() or time.monotonic() >= self._until)

    async def give_back(self) -> None:
        """This ends the lease.

        Raises:
            StaleView: it had ended before.
            BusError: the manager does not answer; it will end the lease by itself.
        """
        held = not self.ends()
        self._keeping.cancel()
        await asyncio.wait({self._keeping})
        await self._asking.ask(EndLease(self._name), LeaseTold)
        if not held:
            raise StaleView("the lease of the pause had ended before the pause")

    async def _renew(self) -> None:
        asked = time.monotonic()
        told = await self._asking.ask(KeepLease(self._name), LeaseTold)
        self._until = asked + told.lasts_s


async def keep(renew: Callable[[], Awaitable[None]], interval_s: float) -> None:
    """This renews a lease again and again; it returns once that fails: the lease is lost then."""
    while True:
        await asyncio.sleep(interval_s)
        try:
            await renew()
        except QvmiError:
            return
