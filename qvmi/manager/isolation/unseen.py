"""A fact that could not be had, which is never taken for one that is not so."""

from dataclasses import dataclass

__all__ = ["Unseen"]


@dataclass(frozen=True, slots=True)
class Unseen:
    """This stands for a fact that could not be had.

    Args:
        reason: why, and what would help.
    """

    reason: str
