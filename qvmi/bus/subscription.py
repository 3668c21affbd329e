"""The bounded queue between a bus and one reader of it."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Self

from qvmi.bus.message import Message
from qvmi.bus.refusals import Refusals
from qvmi.bus.topic import Topic, TopicFilter
from qvmi.errors import BadMessage, BusError

__all__ = ["MAX_WAITING_MESSAGES", "Subscription"]

MAX_WAITING_MESSAGES: Final = 1024
"""Messages held for a slow reader: at most 64 MiB, and a thousand alerts need a reader anyway."""


class Subscription:
    """This iterates the messages of one subscription as they arrive.

    The iteration ends when the subscription or its bus is closed, and raises BusError when the bus
    was lost; what had arrived until then is still delivered.

    Attributes:
        topics: what was subscribed to.
        retained: whether it takes what was published to be retained.
        dropped: messages lost because the reader was too slow.
        refused: arrivals that were no message of ours, or not from where they said.
    """

    def __init__(
        self,
        topics: TopicFilter,
        *,
        forget: Callable[["Subscription"], Awaitable[None]],
        retained: bool = True,
    ) -> None:
        self.topics = topics
        self.retained = retained
        self.dropped = 0
        self.refused = 0
        self._forget = forget
        self._refusals = Refusals()
        self._waiting: deque[Message] = deque()
        self._changed = asyncio.Event()
        self._closing = False
        self._ended = False
        self._lost = ""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        while not self._waiting:
            if self._lost:
                raise BusError(self._lost)
            if self._ended:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._waiting.popleft()

    async def close(self) -> None:
        """This ends the subscription; what has arrived can still be read. Twice does nothing."""
        if not (self._ended or self._closing):
            self._closing = True
            await self._forget(self)
            self.end()

    def arrive(self, topic: Topic, data: bytes, *, retained: bool = False) -> None:
        """This is called by the bus with the bytes found at a topic."""
        try:
            message = Message.from_json(data, topic=topic)
        except BadMessage as error:
            self.refuse(topic, str(error))
            return
        if retained and not self.retained:
            self.refuse(topic, "it was to be retained")
            return
        if len(self._waiting) >= MAX_WAITING_MESSAGES:
            self.dropped += 1
            return
        self._waiting.append(message)
        self._changed.set()

    def refuse(self, topic: Topic | None, reason: str) -> None:
        """This counts an arrival that is not passed on, and has the audit log tell of it."""
        self.refused += 1
        self._refusals.note(topic, reason)

    def end(self, *, lost: str = "") -> None:
        """This is called by the bus when nothing more will arrive; ``lost`` says why, if it broke."""
        if not self._ended:
            self._ended = True
            self._lost = lost
        self._changed.set()
