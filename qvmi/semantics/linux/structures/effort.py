"""What the walk of one question may cost, however much a lying guest has it look at."""

from typing import Final

__all__ = ["Effort", "Spent"]

_STEPS: Final = 1 << 22
"""Structures looked at for one question: a guest with a million open files has fewer, and a few
seconds is what so many take."""


class Spent(Exception):
    """This question has cost as much as it may; what was found so far counts, with a gap."""


class Effort:
    """This counts what one question costs.

    Attributes:
        retries: what was read again because the guest changed it meanwhile.
    """

    def __init__(self, steps: int = _STEPS) -> None:
        self._left = steps
        self.retries = 0

    @property
    def spent(self) -> bool:
        """This tells whether nothing is left."""
        return self._left < 0

    def spend(self, steps: int) -> None:
        """This takes steps from what is left.

        Raises:
            Spent: there are not so many left.
        """
        self._left -= steps
        if self._left < 0:
            raise Spent("given up: so much there is to look at")
