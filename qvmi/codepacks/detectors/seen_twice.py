"""Findings that two readings of a guest within one look agree about."""

from collections.abc import Callable, Iterable

from qvmi.codepacks.codepack import Finding
from qvmi.semantics.guest_os import GuestOS

__all__ = ["seen_twice"]


def seen_twice(read: Callable[[GuestOS], Iterable[Finding]], guest: GuestOS) -> list[Finding]:
    """These are the findings of a second reading whose keys the first one has, too.

    What changes between the listings of one reading is in some of them only, and not so again. Where the
    first reading finds nothing there is no second one.
    """
    first = {finding.key for finding in read(guest)}
    if not first:
        return []
    second = {finding.key: finding for finding in read(guest)}
    return [finding for key, finding in second.items() if key in first]
