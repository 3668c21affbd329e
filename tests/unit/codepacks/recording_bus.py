"""A bus that keeps what is published and fails on demand."""

import asyncio
from collections import deque
from collections.abc import Callable

from qvmi.bus.message import Message
from qvmi.errors import BusError

__all__ = ["RecordingBus"]


class RecordingBus:
    """One account's end of a channel that leads nowhere; see :class:`~qvmi.bus.bus.Publisher`.

    Attributes:
        messages: what was published, in order.
    """

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._faults: deque[BusError] = deque()
        self._changed = asyncio.Condition()

    def fail_next(self, error: BusError) -> None:
        """Makes the next publish raise the error."""
        self._faults.append(error)

    def of_kind(self, kind: str) -> list[Message]:
        """Gives what was published of one kind."""
        return [message for message in self.messages if message.kind == kind]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits until a publish makes the condition true."""
        async with asyncio.timeout(10), self._changed:
            await self._changed.wait_for(condition)

    async def publish(self, message: Message, *, retain: bool = False) -> None:  # noqa: ARG002 - as a bus has it
        """Keeps the message, or raises what was armed."""
        if self._faults:
            raise self._faults.popleft()
        message.to_json()
        async with self._changed:
            self.messages.append(message)
            self._changed.notify_all()
