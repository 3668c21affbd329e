"""Requests and replies: how a codepack asks a service something over the bus, and how that answers.

A request lies at ``qvmi/v1/<vm>/<codepack>/request/<service>``, which the broker lets only this codepack
write. Its reply lies at ``qvmi/v1/<vm>/<codepack>/reply/<service>``, which it lets only this service write
and, beside those who read everything, only this codepack read. So nobody need believe what a request says of
itself: where the reply goes is derived from where the request was found, never from its response topic.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from qvmi.bus.message import Message
from qvmi.bus.subscription import Subscription
from qvmi.bus.topic import REPLY, Topic, TopicFilter
from qvmi.errors import BusError, RequestTimeout, UsageError

if TYPE_CHECKING:
    from qvmi.bus.bus import Bus

__all__ = ["MAX_DEADLINE_S", "MAX_PENDING_REQUESTS", "Request", "Requester", "Requests"]

MAX_DEADLINE_S: Final = 3600.0
"""Furthest deadline: until then a service remembers the request's id, to know it if it comes again."""

MAX_PENDING_REQUESTS: Final = 64
"""Requests of one bus that await a reply; further ones wait within their own deadlines."""

MAX_REMEMBERED: Final = 4096
"""Requests of one codepack that a service remembers until their deadlines, and so the most it takes in that
time: 800 a second with deadlines of five seconds."""


@dataclass(frozen=True, slots=True)
class Request:
    """This is a question that a service was asked.

    Args:
        message: as it came; its topic, which the broker guards, says who asks.
        requests: where it came from.
    """

    message: Message
    requests: "Requests"

    @property
    def body(self) -> Mapping[str, object]:
        """This is what is asked."""
        return self.message.body

    @property
    def remaining_s(self) -> float:
        """This is how long an answer is still of use; below zero it is of none."""
        return _deadline(self.message) - time.time()

    async def reply(self, body: Mapping[str, object]) -> bool:
        """This answers, to whoever asked and to nobody else.

        Returns:
            False where the deadline is over: then nothing was sent.

        Raises:
            BadMessage: the body is no JSON, or too long.
            BusRefused: the service may not answer there.
            BusError: the channel is closed or lost.
        """
        return await self.requests.reply(self.message, body)


class Requests:
    """This iterates the requests to one service, each once, as they arrive.

    Retained ones, those whose deadline is over or too far ahead, and those that were sent before are
    refused and not answered. The iteration ends as that of a subscription does.

    Attributes:
        expired: requests that came after their deadline.
        repeated: requests that had come before.
        late: replies that were not sent, as the deadline was over.
    """

    def __init__(self, bus: "Bus", service: str, arriving: Subscription) -> None:
        self.expired = 0
        self.repeated = 0
        self.late = 0
        self._bus = bus
        self._service = service
        self._arriving = arriving
        self._taken: defaultdict[Topic, _Taken] = defaultdict(_Taken)

    @property
    def refused(self) -> int:
        """This is how many arrivals were refused, whatever for."""
        return self._arriving.refused

    @property
    def dropped(self) -> int:
        """This is how many requests were lost as they were not taken fast enough."""
        return self._arriving.dropped

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Request:
        while True:
            message = await anext(self._arriving)
            if self._may_be_answered(message):
                return Request(message, self)

    async def reply(self, request: Message, body: Mapping[str, object]) -> bool:
        """This answers a request; see :meth:`Request.reply`."""
        if _deadline(request) <= time.time():
            self.late += 1
            return False
        reply = Message(
            vm=request.vm,
            codepack=request.codepack,
            kind=REPLY,
            peer=self._service,
            time=time.time(),
            answers=request.id,
            body=dict(body),
        )
        await self._bus.publish(reply)
        return True

    async def close(self) -> None:
        """This takes no further requests; what has arrived can still be read."""
        await self._arriving.close()

    def _may_be_answered(self, message: Message) -> bool:
        problem = self._problem(message)
        if problem:
            self._arriving.refuse(message.topic.speaker, f"request {message.id}: {problem}")
        return not problem

    def _problem(self, message: Message) -> str:
        """This is why a request is not answered, or empty."""
        now = time.time()
        deadline = _deadline(message)
        if deadline <= now:
            self.expired += 1
            return f"its deadline was over {now - deadline:.3f} s ago"
        if deadline > now + MAX_DEADLINE_S:
            return f"its deadline is further away than {MAX_DEADLINE_S:g} s"
        taken = self._taken[message.topic]
        if message.id in taken.deadlines:
            self.repeated += 1
            return "it has come before"
        if not taken.add(message.id, deadline, now):
            return f"{MAX_REMEMBERED} of the same codepack have not reached their deadlines"
        return ""


class _Taken:
    """The requests of one codepack whose deadlines are not over: they could be sent again."""

    def __init__(self) -> None:
        self.deadlines: dict[str, float] = {}
        self._earliest = 0.0

    def add(self, name: str, deadline: float, now: float) -> bool:
        """This remembers one more; False where there is no room."""
        if len(self.deadlines) >= MAX_REMEMBERED and self._earliest <= now:
            self.deadlines = {one: until for one, until in self.deadlines.items() if until > now}
            self._earliest = min(self.deadlines.values(), default=0.0)
        if len(self.deadlines) >= MAX_REMEMBERED:
            return False
        self.deadlines[name] = deadline
        self._earliest = min(self._earliest, deadline)
        return True


class Requester:
    """This asks services over one bus, and hands each reply to whoever waits for it.

    Attributes:
        unasked: replies that nobody waited for, such as those that came too late.
    """

    def __init__(self, bus: "Bus") -> None:
        self.unasked = 0
        self._bus = bus
        self._room = asyncio.Semaphore(MAX_PENDING_REQUESTS)
        self._opening = asyncio.Lock()
        self._listening: dict[Topic, asyncio.Task[None]] = {}
        self._pending: dict[tuple[Topic, str], asyncio.Future[Message]] = {}

    async def request(
        self, topic: Topic, body: Mapping[str, object], *, deadline_s: float
    ) -> Message:
        """This asks, and waits for the answer; see :meth:`~qvmi.bus.bus.Bus.request`."""
        if not 0 < deadline_s <= MAX_DEADLINE_S:
            raise UsageError(f"deadline of {deadline_s} s: above 0, at most {MAX_DEADLINE_S:g} s")
        now = time.time()
        message = Message(
            vm=topic.vm,
            codepack=topic.codepack,
            kind=topic.kind,
            peer=topic.peer,
            time=now,
            deadline=now + deadline_s,
            body=dict(body),
        )
        try:
            async with asyncio.timeout(deadline_s), self._room:
                return await self._ask(message)
        except TimeoutError:
            raise RequestTimeout(topic.text, deadline_s) from None

    async def close(self) -> None:
        """This ends what waits for replies; the bus ends first, and with it all who still wait."""
        listening = tuple(self._listening.values())
        for task in listening:
            task.cancel()
        if listening:
            await asyncio.wait(listening)

    async def _ask(self, message: Message) -> Message:
        topic = message.topic.reply
        await self._listen(topic)
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._pending[topic, message.id] = answer
        try:
            await self._bus.publish(message)
            return await answer
        finally:
            del self._pending[topic, message.id]
            if answer.done() and not answer.cancelled():
                answer.exception()  # seen, though it was the publishing that failed

    async def _listen(self, topic: Topic) -> None:
        """This listens to the replies of a service, once for all requests to it."""
        async with self._opening:
            if topic in self._listening:
                return
            replies = await self._bus.subscribe(
                TopicFilter(topic.vm, topic.codepack, topic.kind, topic.peer), retained=False
            )
            task = asyncio.create_task(self._read(topic, replies), name="qvmi-replies")
            self._listening[topic] = task

    async def _read(self, topic: Topic, replies: Subscription) -> None:
        """This hands out replies until the subscription ends, which ends those who still wait."""
        reason = "the bus was closed"
        try:
            async for message in replies:
                answer = self._pending.get((topic, message.answers or ""))
                if answer is None or answer.done():
                    self.unasked += 1
                else:
                    answer.set_result(message)
        except BusError as error:
            reason = str(error)
        finally:
            del self._listening[topic]
            for (where, _), answer in self._pending.items():
                if where == topic and not answer.done():
                    answer.set_exception(BusError(reason))


def _deadline(request: Message) -> float:
    """This is a request's deadline; a message of another kind has none, and counts as expired."""
    return request.deadline if request.deadline is not None else 0.0
