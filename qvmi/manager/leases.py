"""Holds on a guest that end by themselves: a pause or a breakpoint of a codepack that is not heard of."""

import asyncio
import math
import secrets
from contextlib import AsyncExitStack
from typing import Final

from qvmi.errors import PolicyDenied, QvmiError, StaleView, UsageError
from qvmi.manager.records import record
from qvmi.policy import Grant

__all__ = ["MAX_LEASES", "Lease", "Leases"]

MAX_LEASES: Final = 16
"""Leases of one codepack at a time; who needs more pauses and breakpoints has lost count of them."""

_UNDO_S: Final = 0.02
"""How long before its longest time a pause is ended: to let the guest run took 1.4 to 14 ms when measured."""

_NAME_BYTES: Final = 8
"""Random bytes in a lease's name. It is no secret: a lease is only its owner's."""


class Lease:
    """This is one hold, which ends with its time unless it is renewed.

    Args:
        owner: the codepack.
        what: what it holds, for people.
        hold: what is to be undone at its end.
        lasts_s: how long it holds from now on.
        longest_s: how long it holds at most, however often it is renewed; None for any time.
        held_s: how much of that has passed already.
    """

    def __init__(
        self,
        owner: str,
        what: str,
        hold: AsyncExitStack,
        *,
        lasts_s: float,
        longest_s: float | None = None,
        held_s: float = 0.0,
    ) -> None:
        self.name = secrets.token_hex(_NAME_BYTES)
        self.owner = owner
        self.what = what
        self.lasts_s = lasts_s
        self.longest_s = longest_s
        self._hold = hold
        self._until = 0.0
        now = asyncio.get_running_loop().time()
        self._latest = math.inf if longest_s is None else now + _kept(longest_s) - held_s
        self.renew()

    @property
    def left_s(self) -> float:
        """This is how long it holds from now on unless it is renewed."""
        return max(0.0, self._until - asyncio.get_running_loop().time())

    @property
    def is_spent(self) -> bool:
        """This tells whether it has held for as long as it may, so that nobody can renew it."""
        return asyncio.get_running_loop().time() >= self._latest

    def renew(self) -> None:
        """This lets it hold for its whole time again, if it may."""
        self._until = min(asyncio.get_running_loop().time() + self.lasts_s, self._latest)

    async def ends(self) -> None:
        """This waits for its end, unless somebody renews it meanwhile."""
        loop = asyncio.get_running_loop()
        while (left_s := self._until - loop.time()) > 0:  # noqa: ASYNC110 - its end moves
            await asyncio.sleep(left_s)

    async def undo(self) -> None:
        """This lets go of the guest."""
        await self._hold.aclose()


def _kept(longest_s: float) -> float:
    """This is when an end must begin that is to be over in time."""
    return max(longest_s - _UNDO_S, longest_s / 2)


class Leases:
    """These are all leases on one machine."""

    def __init__(self) -> None:
        self._leases: dict[str, Lease] = {}
        self._watches: dict[str, asyncio.Task[None]] = {}

    def require_room(self, owner: str) -> None:
        """This raises UsageError where a codepack has too many leases already."""
        held = sum(lease.owner == owner for lease in self._leases.values())
        if held >= MAX_LEASES:
            raise UsageError(f"codepack {owner} holds {held} pauses and breakpoints already")

    def begin(self, lease: Lease) -> Lease:
        """This begins a lease."""
        self._leases[lease.name] = lease
        self._watches[lease.name] = asyncio.create_task(self._watch(lease), name="qvmi-lease")
        return lease

    def of(self, owner: str, name: str) -> Lease:
        """This is a lease of a codepack's own.

        Raises:
            StaleView: it has none of that name, or it has ended.
        """
        lease = self._leases.get(name)
        if lease is None or lease.owner != owner or lease.is_spent:
            raise StaleView(
                "this lease has ended, or held for as long as is granted, or was never given:"
                " the guest may run"
            )
        return lease

    async def end(self, lease: Lease) -> None:
        """This ends a lease; QvmiError if the guest cannot be let go of as it should."""
        if self._leases.pop(lease.name, None) is None:
            return
        self._watches.pop(lease.name).cancel()
        await lease.undo()

    async def end_all(self, owner: str | None = None) -> None:
        """This ends the leases of a codepack that is gone, or all of them, whatever they raise."""
        for lease in tuple(self._leases.values()):
            if owner in (None, lease.owner):
                await self._drop(lease)
                record("codepack %s is gone: its %s is ended", lease.owner, lease.what)

    async def _watch(self, lease: Lease) -> None:
        await lease.ends()
        # In a task of its own, as ending a lease cancels this one; and before it is told: that is on the disk
        # once it is told, which may take many times as long as the guest is to stand still.
        await asyncio.shield(asyncio.create_task(self._expire(lease), name="qvmi-lease-end"))

    async def _expire(self, lease: Lease) -> None:
        """This ends a lease whose time is over, and tells the audit log why."""
        is_spent = lease.is_spent
        await self._drop(lease)
        if is_spent:
            reason = f"longer than {lease.longest_s:g} s"
            action = f"codepack {lease.owner}: hold its {lease.what}"
            record("refused: %s", PolicyDenied(action, Grant.PAUSE.value, reason=reason))
        else:
            record(
                "codepack %s was not heard of for %g s: its %s is ended",
                *(lease.owner, lease.lasts_s, lease.what),
            )

    async def _drop(self, lease: Lease) -> None:
        try:
            await self.end(lease)
        except QvmiError as error:
            record("the end of the %s of codepack %s: %s", lease.what, lease.owner, error)
