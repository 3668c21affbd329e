"""Moments and durations as text, also those that no calendar has: who says them may lie."""

import time
from datetime import UTC, datetime, timedelta
from typing import Final

__all__ = ["duration", "local_moment", "utc_moment"]

_CLOCK: Final = "%Y-%m-%dT%H:%M:%S%z"
_UTC: Final = "%Y-%m-%d %H:%M:%S UTC"
_NONE: Final = (OverflowError, ValueError, OSError)
"""What Python raises at a number that is no moment."""


def local_moment(at: float) -> str:
    """This is a moment on this host's clock.

    Args:
        at: in seconds since the Unix epoch.
    """
    try:
        return time.strftime(_CLOCK, time.localtime(at))
    except _NONE:
        return f"{at:g}"


def utc_moment(at: float) -> str:
    """This is a moment in UTC; in seconds since the Unix epoch."""
    try:
        return datetime.fromtimestamp(at, UTC).strftime(_UTC)
    except _NONE:
        return f"{at:g}"


def duration(seconds: float) -> str:
    """This is how long something took, in days, hours, minutes and seconds."""
    try:
        return str(timedelta(seconds=round(seconds)))
    except _NONE:
        return f"{seconds:g} s"
