"""The bounded queue between a bus and one reader of it."""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final, Self

from qvmi.bus.group import is_group
from qvmi.bus.message import Message
from qvmi.bus.refusals import Refusals
from qvmi.bus.topic import Topic, TopicFilter
from qvmi.errors import BadMessage, BusError, UsageError

__all__ = ["MAX_WAITING_MESSAGES", "Subscription", "require_new"]

MAX_WAITING_MESSAGES: Final = 1024
"""Messages held for a slow reader: at most 64 MiB, and a thousand alerts need a reader anyway."""


class Subscription:
    """This iterates the messages of one subscription as they arrive.

    The iteration ends when the subscription or its bus is closed, and raises BusError when the bus
    was lost; what had arrived until then is still delivered.

    Attributes:
        topics: what was subscribed to.
        retained: whether it takes what was published to be retained.
        group: those with whom it shares the messages; None for nobody.
        dropped: messages lost because the reader was too slow; those of whoever had most waiting.
        refused: arrivals that were no message of ours, or not from where they said.
    """

    def __init__(
        self,
        topics: TopicFilter,
        *,
        forget: Callable[["Subscription"], Awaitable[None]],
        retained: bool = True,
        group: str | None = None,
    ) -> None:
        self.topics = topics
        self.group = group
        self.retained = retained
        self.dropped = 0
        self.refused = 0
        self._forget = forget
        self._refusals = Refusals()
        self._waiting: deque[Message] = deque()
        self._speakers: Counter[tuple[str, str]] = Counter()
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
        message = self._waiting.popleft()
        self._forget_speaker(message)
        return message

    @property
    def refused_of(self) -> Mapping[str, int]:
        """This is how much was refused of each speaker, as ``vm.codepack``."""
        return self._refusals.counts

    @property
    def filter_text(self) -> str:
        """This is what MQTT subscribes to."""
        return f"$share/{self.group}/{self.topics.text}" if self.group else self.topics.text

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
            self.refuse(topic.speaker, str(error))
            return
        if retained and not self.retained:
            self.refuse(topic.speaker, "it was to be retained")
            return
        self._waiting.append(message)
        self._speakers[message.vm, message.codepack] += 1
        if len(self._waiting) > MAX_WAITING_MESSAGES:
            self._drop_one()
        self._changed.set()

    def _drop_one(self) -> None:
        """This drops the last message of whoever has most waiting: a flood costs its speaker alone."""
        self.dropped += 1
        most = max(self._speakers, key=self._speakers.__getitem__)
        for place in range(len(self._waiting) - 1, -1, -1):
            message = self._waiting[place]
            if (message.vm, message.codepack) == most:
                del self._waiting[place]
                self._forget_speaker(message)
                return

    def _forget_speaker(self, message: Message) -> None:
        speaker = (message.vm, message.codepack)
        self._speakers[speaker] -= 1
        if not self._speakers[speaker]:
            del self._speakers[speaker]

    def refuse(self, speaker: str | None, reason: str) -> None:
        """This counts an arrival that is not passed on, and has the audit log tell of it."""
        self.refused += 1
        self._refusals.note(speaker or "a stranger", reason)

    def end(self, *, lost: str = "") -> None:
        """This is called by the bus when nothing more will arrive; ``lost`` says why, if it broke."""
        if not self._ended:
            self._ended = True
            self._lost = lost
        self._changed.set()


def require_new(
    open_ones: Iterable[Subscription], topics: TopicFilter, *, retained: bool, group: str | None
) -> None:
    """This raises UsageError where one bus cannot have another subscription besides those it has.

    A broker knows each filter of a client once: it can tell neither two members of a group apart, nor
    one that takes retained messages from one that does not.
    """
    if group is not None and not is_group(group):
        raise UsageError("a group's name is a secret of its members: make it by new_group")
    for one in open_ones:
        if one.topics != topics or one.group != group:
            continue
        if group is not None:
            raise UsageError(f"{topics.text}: this bus is in the group already")
        if one.retained != retained:
            raise UsageError(f"{topics.text}: already subscribed to with retained={one.retained}")
