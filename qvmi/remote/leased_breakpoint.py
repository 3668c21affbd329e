"""The hits of a breakpoint that the manager has set: fetched as they come, which also renews its lease."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from qvmi.errors import BusError, QvmiError
from qvmi.machine.completion import ended, to_the_end
from qvmi.machine.holding.breakpoints import Condition, HitStream
from qvmi.remote.asking import ANSWER_S, Asking
from qvmi.remote.messages import LEASE_S, EndLease, HitsTold, LeaseTold, SetBreakpoint, TakeHits

__all__ = ["leased_breakpoint"]

_WAIT_S: Final = LEASE_S / 4
"""How long the manager waits for a hit before it says that there is none: the lease is renewed then."""


@asynccontextmanager
async def leased_breakpoint(
    asking: Asking, question: SetBreakpoint, condition: Condition | None
) -> AsyncIterator[HitStream]:
    """This sets a breakpoint and makes a stream of its hits for as long as the block lasts.

    Raises:
        PolicyDenied: this codepack may not.
        QvmiError: what `Machine.breakpoints` raises.
        BusError: the manager does not answer.
    """
    stream = HitStream(question.place, condition)
    setting = asyncio.ensure_future(asking.ask(question, LeaseTold))
    cancelled = await ended(setting)
    lease = setting.result().lease
    fetching = asyncio.create_task(_fetch(asking, lease, stream), name="qvmi-hits")
    try:
        if cancelled is not None:
            raise cancelled
        yield stream
    finally:
        stream.end(None)
        fetching.cancel()
        await to_the_end(_leave(asking, lease, fetching))


async def _leave(asking: Asking, lease: str, fetching: asyncio.Task[None]) -> None:
    await asyncio.wait({fetching})
    with suppress(BusError):  # the lease ends by itself
        await asking.ask(EndLease(lease), LeaseTold)


async def _fetch(asking: Asking, lease: str, stream: HitStream) -> None:
    """This fetches hits until it is cancelled, or until there will be no more."""
    take = TakeHits(lease, _WAIT_S)
    lost = 0
    try:
        while True:
            told = await asking.ask(take, HitsTold, timeout_s=ANSWER_S + _WAIT_S)
            for hit in told.hits:
                stream.put(hit.hit(stream.place))
            stream.dropped += told.dropped - lost
            lost = told.dropped
            stream.hits = told.seen
    except QvmiError as error:
        stream.end(error)
