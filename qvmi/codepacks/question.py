"""The question whether a codepack sees the same as another one, and what it answers.

It answers by a look of its own that began after it was asked: what an alert says is not believed.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from enum import StrEnum
from typing import Final, Self

import msgspec

from qvmi.bus.bus import Bus
from qvmi.bus.topic import Topic
from qvmi.codepacks.codepack import Finding
from qvmi.errors import BadMessage, RequestTimeout

__all__ = ["ConfirmAnswer", "ConfirmQuestion", "Confirmation", "ask_for"]

MAX_ATTEMPTS: Final = 4
"""How often a question is asked within its deadline."""

MIN_PATIENCE_S: Final = 1.0
"""How long an answer is waited for at least before it is asked again: a look may take as long."""


class Confirmation(StrEnum):
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

    answer: Confirmation
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
        BusError: the bus was lost.
    """
    patience_s = max(deadline_s / MAX_ATTEMPTS, MIN_PATIENCE_S)
    body: dict[str, object] = msgspec.to_builtins(question)
    try:
        async with asyncio.timeout(deadline_s):
            while True:
                try:
                    asked = await bus()
                    reply = await asked.request(topic, body, deadline_s=patience_s)
                    break
                except RequestTimeout:
                    continue
    except TimeoutError:
        raise RequestTimeout(topic.text, deadline_s) from None
    try:
        return msgspec.convert(reply.body, ConfirmAnswer, strict=True)
    except msgspec.ValidationError as error:
        raise BadMessage(f"no answer to a question: {error}") from error
