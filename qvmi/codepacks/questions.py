"""What others ask a codepack over the bus: each question is answered by a look that began after it came.

One that says nothing is told what the look found; one that asks whether it sees something is told that.
"""

import logging
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Final

import msgspec

from qvmi.bus.requests import Request, Requests
from qvmi.codepacks.codepack import Finding
from qvmi.codepacks.look import MAX_FINDING_BYTES, Look
from qvmi.codepacks.question import Answer, ConfirmAnswer, ConfirmQuestion
from qvmi.codepacks.status import Sight
from qvmi.codepacks.wake import Wake
from qvmi.errors import BusError
from qvmi.view import Provenance, Taken

__all__ = ["MAX_ASKING", "LookAnswer", "Questions", "SeenFinding"]

MAX_ASKING: Final = 16
"""Questions that wait for one look; who asks more often is not waiting for the answers."""

_log: Final = logging.getLogger(__name__)


class SeenFinding(msgspec.Struct, frozen=True, kw_only=True):
    """This is a finding of the look that answers.

    Args:
        finding: as that look saw it.
        confirmed: whether looks before saw it, too, so that it is an alert.
    """

    finding: Finding
    confirmed: bool


class LookAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """This is the body of a codepack's answer.

    Args:
        sight: how far the look saw.
        problem: what was wrong, in words; empty if nothing was.
        items: what it found.
        left_out: findings that had no room in one message.
        gap_count: parts of the guest that it could not see.
        provenance: how it was taken.
    """

    sight: Sight
    problem: str
    items: tuple[SeenFinding, ...]
    left_out: int
    gap_count: int
    provenance: Provenance


class Questions:
    """These are the questions to one codepack.

    Args:
        wake: is rung when there is one.
    """

    def __init__(self, wake: Wake) -> None:
        self._wake = wake
        self._asking: list[Request] = []

    async def heed(self, requests: Requests) -> None:
        """This takes in questions until the bus is closed or lost."""
        with suppress(BusError):
            async for request in requests:
                if len(self._asking) < MAX_ASKING:
                    self._asking.append(request)
                    self._wake.ring()
                else:
                    problem = f"{MAX_ASKING} others ask already: ask again later"
                    await request.reply(_refusal(request, problem))

    def take(self) -> list[Request]:
        """These are the questions until now, which the look that begins will answer."""
        asking, self._asking = self._asking, []
        return asking

    async def answer(
        self, asking: Iterable[Request], look: Look, confirmed: Collection[str]
    ) -> None:
        """This answers them by a look; who is not there any more gets no answer.

        Args:
            asking: what :meth:`take` gave when it began.
            look: it.
            confirmed: the keys of the findings that are alerts.
        """
        for request in asking:
            try:
                await request.reply(_reply(request, look, confirmed))
            except BusError as error:
                _log.debug("a question is not answered: %s", error)


def _refusal(request: Request, problem: str) -> dict[str, object]:
    if "what" in request.body:
        unknown = ConfirmAnswer(answer=Answer.UNKNOWN, why=problem)
        answer: dict[str, object] = msgspec.to_builtins(unknown)
        return answer
    label = Provenance(Taken.LIVE, time.time())
    blind = LookAnswer(
        sight=Sight.BLIND, problem=problem, items=(), left_out=0, gap_count=0, provenance=label
    )
    refusal: dict[str, object] = msgspec.to_builtins(blind)
    return refusal


def _reply(request: Request, look: Look, confirmed: Collection[str]) -> dict[str, object]:
    reply: dict[str, object] = msgspec.to_builtins(
        _confirmed(request, look) if "what" in request.body else _answer(look, confirmed)
    )
    return reply


def _confirmed(request: Request, look: Look) -> ConfirmAnswer:
    """This says whether the look saw what the question is about."""
    try:
        question = msgspec.convert(dict(request.body), ConfirmQuestion, strict=True)
    except msgspec.ValidationError as error:
        return ConfirmAnswer(answer=Answer.UNKNOWN, why=f"no question: {error}")
    for finding in look.findings:
        if question.is_about(finding):
            return ConfirmAnswer(answer=Answer.CONFIRMED, why=finding.claim)
    if look.sight is Sight.FULL:
        return ConfirmAnswer(answer=Answer.DENIED, why="it saw everything, and not this")
    why = f"sight {look.sight}: {look.problem}"
    return ConfirmAnswer(answer=Answer.UNKNOWN, why=why)


def _answer(look: Look, confirmed: Collection[str]) -> LookAnswer:
    room = MAX_FINDING_BYTES
    items: list[SeenFinding] = []
    for finding in look.findings:
        room -= len(msgspec.json.encode(finding))
        if room < 0 and items:
            break
        items.append(SeenFinding(finding=finding, confirmed=finding.key in confirmed))
    return LookAnswer(
        sight=look.sight,
        problem=look.problem,
        items=tuple(items),
        left_out=len(look.findings) - len(items),
        gap_count=look.gap_count,
        provenance=look.provenance,
    )
