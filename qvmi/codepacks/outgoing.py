"""What a codepack has to say, kept until a bus takes it, and said again over the next one."""

import asyncio
import logging
from collections import deque
from typing import Final

from qvmi.bus import throttle
from qvmi.bus.bus import Publisher
from qvmi.bus.message import Message
from qvmi.codepacks.status import STATUS
from qvmi.errors import BadMessage

__all__ = ["MAX_SENT_KEPT", "MAX_WAITING", "Outgoing"]

MAX_WAITING: Final = 1024
"""Messages kept while there is no bus to take them; the oldest go first."""

MAX_SENT_KEPT: Final = 256
"""Messages kept to be sent again over the next bus: a broker that dies may not have passed them on."""

_log: Final = logging.getLogger(__name__)


class Outgoing:
    """These are the messages of one codepack.

    Attributes:
        lost: messages that nobody took in time, or that could not be published.
    """

    def __init__(self) -> None:
        self.lost = 0
        self._backlog = 0
        self._waiting: deque[Message] = deque()
        self._sent: deque[Message] = deque(maxlen=MAX_SENT_KEPT)

    @property
    def is_empty(self) -> bool:
        """This tells whether all is said."""
        return not self._waiting

    def begin(self) -> bool:
        """This begins over another bus with what was said last, and tells whether anything was."""
        said = bool(self._sent)
        self._waiting.extendleft(reversed(self._sent))
        self._sent.clear()
        self._backlog = len(self._waiting)
        return said

    def add(self, message: Message) -> None:
        """This takes one more."""
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self.lost += 1
        self._waiting.append(message)

    async def flush(self, bus: Publisher) -> None:
        """This publishes what waits; what the bus does not take goes on waiting."""
        while self._waiting:
            message = self._waiting[0]
            try:
                await bus.publish(message, retain=message.kind == STATUS)
            except BadMessage:
                _log.exception("%s: a message that cannot be published", message.codepack)
                self.lost += 1
            else:
                self._sent.append(message)
            self._waiting.popleft()
            if self._backlog:  # what had to wait is no flood, and must not be taken for one
                self._backlog -= 1
                await asyncio.sleep(1 / (throttle.PATIENT_SHARE * throttle.MAX_PER_S))
