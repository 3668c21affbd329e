"""A step that is ready to be taken: what it will do, how, and how it is undone."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from qvmi.manager.response.journal import Undo

__all__ = ["Prepared"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """This is a step about to be taken.

    Args:
        what: will be done, in words.
        act: does it, and says what was done.
        undo: how it is undone, whole or in part.
    """

    what: str
    act: Callable[[], Awaitable[str]]
    undo: tuple[Undo, ...] = ()
