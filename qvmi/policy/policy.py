"""A policy: the grants that a session or a codepack holds, each within its limits."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NoReturn

from qvmi.errors import PolicyDenied
from qvmi.policy.grant import Grant
from qvmi.policy.limits import UNLIMITED, Limits

__all__ = ["OBSERVE", "READ_ONLY", "Policy", "refuse"]

_audit: Final = logging.getLogger("qvmi.audit")


@dataclass(frozen=True, slots=True)
class Policy:
    """This is the set of grants that a session or a codepack holds.

    Args:
        grants: what is granted.
        limits: within which limits; a grant that is not in it has none.
    """

    grants: frozenset[Grant]
    limits: Mapping[Grant, Limits] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        held = {grant: limits for grant, limits in self.limits.items() if limits != UNLIMITED}
        object.__setattr__(self, "limits", MappingProxyType(held))

    def allows(self, grant: Grant) -> bool:
        """This tells whether the grant is held, be it within limits."""
        return grant in self.grants

    def allows_all(self, grant: Grant) -> bool:
        """This tells whether the grant is held without any limit.

        Only who may read without limits can be given the guest's RAM itself, or what is understood of it.
        """
        return grant in self.grants and grant not in self.limits

    def limits_of(self, grant: Grant) -> Limits:
        """These are the limits of a grant that is held."""
        return self.limits.get(grant, UNLIMITED)

    def plus(self, *grants: Grant) -> "Policy":
        """This is a policy with further grants: ``OBSERVE.plus(Grant.WRITE)``; limits stay."""
        return Policy(self.grants.union(grants), self.limits)

    def within(self, grant: Grant, limits: Limits) -> "Policy":
        """This is a policy that holds the grant too, within these limits and no others."""
        return Policy(self.grants | {grant}, {**self.limits, grant: limits})

    def require(self, grant: Grant, action: str) -> None:
        """This raises PolicyDenied, naming the action, unless the grant is held; the audit log tells.

        What its limits are is not asked: that takes a :class:`~qvmi.policy.PolicyGate`.
        """
        if grant not in self.grants:
            refuse(PolicyDenied(action, grant.value))

    def require_all(self, grant: Grant, action: str) -> None:
        """This raises PolicyDenied unless the grant is held without any limit; the audit log tells."""
        self.require(grant, action)
        if grant in self.limits:
            refuse(PolicyDenied(action, grant.value, reason="it is granted only within limits"))


def refuse(denied: PolicyDenied) -> NoReturn:
    """This writes a refusal to the audit log and raises it."""
    _audit.warning("refused: %s", denied)
    raise denied


READ_ONLY: Final = Policy(frozenset({Grant.READ_MEMORY, Grant.READ_REGISTERS}))
"""The default policy of codepacks: look, and change nothing, not even when the guest runs."""

OBSERVE: Final = READ_ONLY.plus(Grant.PAUSE, Grant.BREAKPOINT)
"""The default policy of a session: look, and stop the guest for it.

What that costs the guest is time; no register and no byte of its memory is another afterwards.
"""
