"""The question whether a codepack sees the same as another one, and what it answers.

It answers by a look of its own that began after it was asked: what an alert says is not believed.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from enum import StrEnum
from typing import Final, Self

import msgspec

from qvmi.bus.bus import Bus
from qvmi.bus.message import Message
from qvmi.bus.topic import Topic
from qvmi.codepacks.codepack import Finding
from qvmi.errors import BusError, BusRefused, RequestTimeout

__all__ = ["Answer", "ConfirmAnswer", "ConfirmQuestion", "ask_for"]

FIRST_PAUSE_S: Final = 1.0
"""Until a question is asked again; then twice as long each time, a dozen times in an hour at most."""


class Answer(StrEnum):
    """This is what a codepack says of it."""

    CONFIRMED = "confirmed"
    DENIED = "denied"
    UNKNOWN = "unknown"


class ConfirmQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """This asks whether something is seen.

    Args:
        what: ``confirm``; there is no other question yet.
        pids: processes that it is about.
        addresses: places in the guest's memory that it is about.
    """

    what: str = "confirm"
    pids: tuple[int, ...] = ()
    addresses: tuple[int, ...] = ()

    @classmethod
    def of(cls, findings: Iterable[Finding]) -> Self:
        """This asks about what findings are about."""
        observed = [one for finding in findings for one in finding.evidence]
        pids = {pid for one in observed if type(pid := one.facts.get("pid")) is int}
        addresses = {one.address for one in observed if one.address is not None}
        return cls(pids=tuple(sorted(pids)), addresses=tuple(sorted(addresses)))

    def is_about(self, finding: Finding) -> bool:
        """This tells whether a finding is about one of these processes or places."""
        other = type(self).of([finding])
        return bool({*self.pids} & {*other.pids} or {*self.addresses} & {*other.addresses})


class ConfirmAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """This is the answer.

    Args:
        answer: whether it is seen; ``denied`` is said of a look that saw everything.
        why: the claim of what was found, or why nobody knows.
    """

    answer: Answer
    why: str = ""


async def ask_for(
    bus: Callable[[], Awaitable[Bus]], topic: Topic, question: ConfirmQuestion, *, deadline_s: float
) -> ConfirmAnswer:
    """This asks a codepack, and waits for its answer; it asks again where none comes.

    Whoever was asked may be killed before it answers: what is started in its place has not heard of it.

    Args:
        bus: gives the bus, once there is one.
        topic: where it is asked.
        question: what.
        deadline_s: how long all of it may take, in seconds.

    Raises:
        RequestTimeout: there was no answer in time.
        BadMessage: what was answered is none.
        BusRefused: it may not be asked.
    """
    body: dict[str, object] = msgspec.to_builtins(question)
    try:
        async with asyncio.timeout(deadline_s):
            reply = await _first_reply(bus, topic, body, deadline_s=deadline_s)
    except TimeoutError:
        raise RequestTimeout(topic.text, deadline_s) from None
    return reply.read_body(ConfirmAnswer)


async def _first_reply(
    bus: Callable[[], Awaitable[Bus]], topic: Topic, body: dict[str, object], *, deadline_s: float
) -> Message:
    """This is the first reply to a question that is asked again and again, less and less often."""
    loop = asyncio.get_running_loop()
    ends, pause_s = loop.time() + deadline_s, FIRST_PAUSE_S
    asking: set[asyncio.Task[Message]] = set()
    try:
        while True:
            request = (await bus()).request(topic, body, deadline_s=max(ends - loop.time(), 0.001))
            asking.add(asyncio.create_task(request, name="qvmi-question"))
            again = loop.time() + pause_s
            while asking and (left_s := again - loop.time()) > 0:
                done, asking = await asyncio.wait(
                    asking, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
                )
                for one in done:
                    if (reply := _reply_of(one)) is not None:
                        return reply
            await asyncio.sleep(again - loop.time())
            pause_s *= 2
    finally:
        for one in asking:
            one.cancel()
        if asking:
            await asyncio.wait(asking)


def _reply_of(asked: "asyncio.Task[Message]") -> Message | None:
    """This is what came of one request; None where it is to be asked again.

    Raises:
        BusRefused: it may not be asked.
    """
    try:
        return asked.result()
    except BusRefused:
        raise
    except BusError:
        return None
