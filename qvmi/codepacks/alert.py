"""The alert: a confirmed finding, as it is published, with what makes it checkable later."""

import hashlib
from enum import StrEnum
from typing import Final, Self

import msgspec

from qvmi.codepacks.codepack import Finding
from qvmi.codepacks.confirmation import Confirmed
from qvmi.view import Provenance

__all__ = ["GUARD_RAILS", "Alert", "AlertState", "evidence_hash"]

GUARD_RAILS: Final = "guard rails"
"""What holds codepacks to their policy in the process of qvmi itself: code that wants to goes around it."""


class AlertState(StrEnum):
    """This is whether what an alert tells of is still so; it is also the message's kind."""

    RAISED = "alert"
    CLEARED = "cleared"


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """This is the body of messages of the kinds ``alert`` and ``cleared``.

    Args:
        state: whether it is raised or cleared.
        codepack: who found it.
        finding: as it was when the alert was raised.
        evidence_hash: of the finding, see :func:`evidence_hash`; it joins the two messages.
        provenance: how the look that raised or cleared it was taken.
        rounds: looks that saw it in a row when it was raised.
        first_seen: when it was first seen, seconds since the Unix epoch on the host's clock.
        last_seen: when it was last seen.
        reason: why it was cleared; empty for a raised one.
        caveats: what speaks against relying on it, such as ``policy: advisory``; none as a rule.
        held_by: what held the codepack to its policy: ``guard rails`` in the process of qvmi itself; in one
            of its own what kept that, such as ``another uid``, or ``nothing``. Empty where it is not told.
    """

    state: AlertState
    codepack: str
    finding: Finding
    evidence_hash: str
    provenance: Provenance
    rounds: int
    first_seen: float
    last_seen: float
    reason: str = ""
    caveats: tuple[str, ...] = ()
    held_by: str = ""

    @classmethod
    def of(
        cls,
        confirmed: Confirmed,
        *,
        codepack: str,
        provenance: Provenance,
        cleared_because: str = "",
        caveats: tuple[str, ...] = (),
        held_by: str = "",
    ) -> Self:
        """This makes the alert of a confirmed finding; one that is cleared says why."""
        return cls(
            state=AlertState.CLEARED if cleared_because else AlertState.RAISED,
            codepack=codepack,
            finding=confirmed.finding,
            evidence_hash=evidence_hash(confirmed.finding),
            provenance=provenance,
            rounds=confirmed.rounds,
            first_seen=confirmed.first_seen,
            last_seen=confirmed.last_seen,
            reason=cleared_because,
            caveats=caveats,
            held_by=held_by,
        )


def evidence_hash(finding: Finding) -> str:
    """This is the SHA-256, in hexadecimal, of the finding's JSON with keys sorted and no spaces."""
    return hashlib.sha256(msgspec.json.encode(finding, order="sorted")).hexdigest()
