"""Limits of a grant: where, how often, how much, how long."""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from qvmi.errors import UsageError

__all__ = ["ADDRESSES", "MAX_RANGES", "UNLIMITED", "AddressRange", "Limits", "Space"]

ADDRESSES: Final = 1 << 64
"""How many addresses there are in either space."""

MAX_RANGES: Final = 256
"""Ranges of one grant: each access is compared with all of them."""


class Space(StrEnum):
    """This is what an address is counted in."""

    PHYSICAL = "physical"
    VIRTUAL = "virtual"


@dataclass(frozen=True, slots=True)
class AddressRange:
    """This is a range of guest addresses.

    Args:
        space: whether they are physical or virtual.
        start: the first one.
        size: bytes; at least one.

    Raises:
        UsageError: it is empty, or goes beyond the last address there is.
    """

    space: Space
    start: int
    size: int

    def __post_init__(self) -> None:
        if self.start < 0 or self.size < 1 or self.start + self.size > ADDRESSES:
            raise UsageError(f"{self}: no range of 64-bit addresses")

    def __str__(self) -> str:
        return f"{self.space} {self.start:#x}+{self.size:#x}"

    def holds(self, other: "AddressRange") -> bool:
        """This tells whether the other range lies in this one, to its last byte."""
        return (
            self.space is other.space
            and self.start <= other.start
            and other.start + other.size <= self.start + self.size
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """This bounds one grant; None is no bound.

    Args:
        ranges: where it holds; each access must lie in one of them, by the address that is asked for.
        per_second: how many times a second. At least one is always allowed when all was quiet.
        bytes_per_second: how much a second, which is also the most at once.
        longest_s: how long the guest may be stopped at once, in seconds.

    Raises:
        UsageError: a bound is not above 0, is no number, or there are too many ranges.
    """

    ranges: tuple[AddressRange, ...] | None = None
    per_second: float | None = None
    bytes_per_second: float | None = None
    longest_s: float | None = None

    def __post_init__(self) -> None:
        for bound in (self.per_second, self.bytes_per_second, self.longest_s):
            if bound is not None and not (math.isfinite(bound) and bound > 0):
                raise UsageError(f"a limit of {bound}: it must be above 0")
        if self.ranges is not None and not 1 <= len(self.ranges) <= MAX_RANGES:
            raise UsageError(f"{len(self.ranges)} ranges: give 1 to {MAX_RANGES}")

    def covers(self, place: AddressRange) -> bool:
        """This tells whether an access to the place is within the ranges."""
        return self.ranges is None or any(held.holds(place) for held in self.ranges)


UNLIMITED: Final = Limits()
"""No limits: the grant holds everywhere, at any rate."""
