"""Reading what codepacks and the manager say of how they are, and counting what was read too slowly."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final, Never

from qvmi.bus.bus import Channel
from qvmi.bus.topic import TopicFilter
from qvmi.codepacks.status import STATUS, Status
from qvmi.errors import BusError, BusRefused
from qvmi.manager.accounts import reader_account
from qvmi.manager.losses import TELL_S, loss_status

if TYPE_CHECKING:
    from qvmi.bus.message import Message
    from qvmi.bus.subscription import Subscription

__all__ = ["MAX_STATUSES", "StatusReader"]

MAX_STATUSES: Final = 256
"""Statuses kept for a reader that is slow; the oldest go first, as newer ones tell more."""

_RECONNECT_S: Final = 0.2

_log: Final = logging.getLogger(__name__)


class StatusReader:
    """This reads statuses about one machine, over one connection after the other.

    Args:
        vm: the machine's name on the bus.
        news: set whenever there is one.

    Attributes:
        account: who reads.
        arrived: those that nobody has taken yet.
    """

    def __init__(self, vm: str, news: asyncio.Event) -> None:
        self.account = reader_account(vm)
        self.arrived: deque[Message] = deque(maxlen=MAX_STATUSES)
        self._topics = TopicFilter(vm, None, STATUS)
        self._news = news
        self._reading: Subscription | None = None
        self._dropped = 0
        self._refused = 0

    async def run(self, channel: Channel) -> Never:
        """This reads until it is cancelled.

        Raises:
            BusRefused: the channel does not let the account in.
        """
        while True:
            try:
                await self._session(channel)
            except BusRefused:
                raise
            except BusError as error:
                _log.debug("the bus is lost: %s", error)
            await asyncio.sleep(_RECONNECT_S)

    async def tell_losses(self, tell: Callable[[Status], Awaitable[None]]) -> Never:
        """This tells, now and then, of what was lost or refused since it told last."""
        told = (0, 0)
        while True:
            await asyncio.sleep(TELL_S)
            reading = self._reading
            dropped = self._dropped + (reading.dropped if reading else 0)
            refused = self._refused + (reading.refused if reading else 0)
            if (dropped, refused) != told:
                told = (dropped, refused)
                await tell(loss_status(dropped, refused))

    async def _session(self, channel: Channel) -> None:
        async with AsyncExitStack() as stack:
            bus = await channel.connect(self.account)
            stack.push_async_callback(bus.close)
            reading = self._reading = await bus.subscribe(self._topics)
            stack.callback(self._ended, reading)
            async for message in reading:
                self._dropped += len(self.arrived) == MAX_STATUSES
                self.arrived.append(message)
                self._news.set()

    def _ended(self, reading: "Subscription") -> None:
        """This keeps the figures of a subscription that is over."""
        self._reading = None
        self._dropped += reading.dropped
        self._refused += reading.refused
