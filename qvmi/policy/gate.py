"""The gate: each single access is held against a policy, its ranges and its rates."""

from typing import Final, NoReturn

from qvmi.errors import PolicyDenied
from qvmi.policy.grant import Grant
from qvmi.policy.limits import AddressRange, Limits
from qvmi.policy.policy import Policy, refuse

__all__ = ["PolicyGate"]


class PolicyGate:
    """This decides on each access of one holder. It waits for nothing and knows no clock.

    There is one for each holder for as long as that may act: it remembers what was done.

    Args:
        holder: whose accesses these are, as refusals name it; empty for this session's own.
        policy: what the holder is granted.
    """

    def __init__(self, holder: str, policy: Policy) -> None:
        self.holder: Final = holder
        self.policy: Final = policy
        self._times: dict[Grant, _Bucket] = {}
        self._bytes: dict[Grant, _Bucket] = {}

    @property
    def longest_pause_s(self) -> float | None:
        """This is how long the guest may be stopped at once, in seconds; None where that is not bounded.

        Whoever stops the guest ends the pause then.
        """
        return self.policy.limits_of(Grant.PAUSE).longest_s

    def require(
        self,
        grant: Grant,
        action: str,
        *,
        now: float,
        place: AddressRange | None = None,
        size: int | None = None,
    ) -> None:
        """This takes note of an access that is allowed, and raises where it is not.

        Args:
            grant: what it needs.
            action: what it does, in words, for the refusal.
            now: seconds on a clock that never goes back.
            place: the guest's memory that it is about; an access without one is refused where
                the grant has ranges.
            size: bytes that it moves; those of the place unless told otherwise.

        Raises:
            PolicyDenied: it is not granted, not there, not so often or not so much; the audit log tells.
        """
        if not self.policy.allows(grant):
            self._refuse(action, grant)
        limits = self.policy.limits_of(grant)
        if limits.ranges is not None and (place is None or not limits.covers(place)):
            self._refuse(action, grant, f"outside of its ranges: {_shown(limits)}")
        moved = size if size is not None else place.size if place is not None else 0
        times = self._bucket(self._times, grant, limits.per_second)
        volume = self._bucket(self._bytes, grant, limits.bytes_per_second)
        if times and not times.has(1, now):
            self._refuse(action, grant, f"more than {limits.per_second:g} times a second")
        if volume and not volume.has(moved, now):
            self._refuse(action, grant, f"more than {limits.bytes_per_second:g} bytes a second")
        if times:
            times.take(1)
        if volume:
            volume.take(moved)

    def require_unbounded_pause(self, action: str, *, now: float) -> None:
        """This is :meth:`require` for what stops the guest for as long as it takes.

        Raises:
            PolicyDenied: the guest may not be stopped, or only so long at once.
        """
        if self.policy.allows(Grant.PAUSE) and (longest := self.longest_pause_s) is not None:
            reason = f"nobody knows whether it takes longer than {longest:g} s"
            self._refuse(action, Grant.PAUSE, reason)
        self.require(Grant.PAUSE, action, now=now)

    def _bucket(
        self, buckets: "dict[Grant, _Bucket]", grant: Grant, rate: float | None
    ) -> "_Bucket | None":
        if rate is None:
            return None
        return buckets.setdefault(grant, _Bucket(rate))

    def _refuse(self, action: str, grant: Grant, reason: str = "") -> NoReturn:
        who = f"{self.holder}: " if self.holder else ""
        refuse(PolicyDenied(f"{who}{action}", grant.value, reason=reason))


class _Bucket:
    """This lets so many through in a second, and after a quiet time that many at once.

    What a second brings is also what it holds at most, so that in no span of t seconds more than
    rate x (t + 1) go through. It holds one at least: half a time a second is once in two seconds.
    """

    __slots__ = ("_at", "_left", "_rate", "_size")

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._size = max(rate, 1.0)
        self._left = self._size
        self._at: float | None = None

    def has(self, wanted: float, now: float) -> bool:
        """This tells whether there is so much; a clock that went back brings nothing."""
        if self._at is not None and now > self._at:
            self._left = min(self._size, self._left + (now - self._at) * self._rate)
        self._at = now if self._at is None else max(self._at, now)
        return wanted <= self._left

    def take(self, wanted: float) -> None:
        self._left -= wanted


def _shown(limits: Limits) -> str:
    """These are the first of its ranges, in words."""
    ranges = limits.ranges or ()
    first = ", ".join(str(held) for held in ranges[:_MOST_SHOWN])
    return first + (f" and {len(ranges) - _MOST_SHOWN} more" if len(ranges) > _MOST_SHOWN else "")


_MOST_SHOWN: Final = 4
"""Ranges that a refusal names."""
