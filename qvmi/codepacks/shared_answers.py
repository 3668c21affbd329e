"""Listings that codepacks in one process share: what several ask at about the same time is read once.

Nobody is given an answer that is older than what it has asked before: a codepack that asks the same again,
in one look or in the next, wants to know whether it is still so.
"""

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

from qvmi.semantics.guest_os import GuestOS, Listing

__all__ = ["SHARED_FOR_S", "SharedAnswers", "question_of"]

SHARED_FOR_S: Final = 0.25
"""Oldest answer that is given to another codepack: a round of looks in a row takes about as long."""

MAX_ANSWERS: Final = 1024
"""Answers kept: of some questions for each process."""

MAX_ROWS: Final = 100_000
"""Rows kept in all of them, some 20 MiB; a listing that is longer is not shared."""

WAIT_S: Final = 1.0
"""Longest wait for a listing that somebody else reads just now; then it is read again."""

Row = TypeVar("Row")


@dataclass(slots=True)
class _Answer:
    """What is known of one question; the lock is held by who reads it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    began: float = 0.0
    listing: Listing[Any] | None = None

    @property
    def rows(self) -> int:
        return 0 if self.listing is None else len(self.listing)


class SharedAnswers:
    """This keeps the answers of one guest for a moment; looks of several threads may ask it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._guest: GuestOS | None = None
        self._answers: dict[Hashable, _Answer] = {}

    def answer(
        self,
        guest: GuestOS,
        question: Hashable,
        ask: Callable[[], Listing[Row]],
        *,
        not_before: float,
    ) -> Listing[Row]:
        """This is an answer that somebody was given a moment ago, or a new one.

        Args:
            guest: whom it is about; another one is asked anew.
            question: what is asked, see :func:`question_of`.
            ask: asks; what it raises is not kept.
            not_before: when it must have been begun to be of use, on the monotonic clock.
        """
        answer = self._answer(guest, question)
        if not answer.lock.acquire(timeout=WAIT_S):
            return ask()
        try:
            now = time.monotonic()
            if answer.listing is None or answer.began < max(not_before, now - SHARED_FOR_S):
                answer.listing = None
                listing = ask()
                answer.began, answer.listing = now, listing
            return answer.listing
        finally:
            answer.lock.release()

    def _answer(self, guest: GuestOS, question: Hashable) -> _Answer:
        with self._lock:
            if guest is not self._guest:
                self._guest = guest
                self._answers = {}
            self._forget_old()
            return self._answers.setdefault(question, _Answer())

    def _forget_old(self) -> None:
        """This lets go of what is of no use any more, and of everything where that is too much."""
        oldest = time.monotonic() - SHARED_FOR_S
        old = [
            question
            for question, answer in self._answers.items()
            if answer.began < oldest and not answer.lock.locked()
        ]
        for question in old:
            del self._answers[question]
        rows = sum(answer.rows for answer in self._answers.values())
        if rows > MAX_ROWS or len(self._answers) >= MAX_ANSWERS:
            self._answers = {}


def question_of(ask: Callable[[], object]) -> Hashable | None:
    """This names what a call asks; None where nobody can tell, so that its answer is not shared.

    Methods and partials of them can be told apart by their names and arguments, functions cannot.
    """
    if isinstance(ask, partial):
        question = (getattr(ask.func, "__name__", ""), ask.args, tuple(ask.keywords.items()))
    elif hasattr(ask, "__self__"):
        question = (getattr(ask, "__name__", ""), (), ())
    else:
        return None
    try:
        hash(question)
    except TypeError:  # an argument that may change
        return None
    return question
