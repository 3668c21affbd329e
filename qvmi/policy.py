"""Grants: what a session or a codepack may do to a guest."""

import logging
from dataclasses import dataclass
from enum import StrEnum

from qvmi.errors import PolicyDenied

__all__ = ["OBSERVE", "READ_ONLY", "Grant", "Policy"]

_audit = logging.getLogger("qvmi.audit")


class Grant(StrEnum):
    """This is one kind of access to a guest."""

    READ_MEMORY = "read-memory"
    READ_REGISTERS = "read-registers"
    PAUSE = "pause"
    BREAKPOINT = "breakpoint"
    WRITE = "write"
    DISK = "disk"
    NETWORK_CAPTURE = "network-capture"
    NIC = "nic"
    CONTROL = "control"


@dataclass(frozen=True, slots=True)
class Policy:
    """This is the set of grants that a session or a codepack holds."""

    grants: frozenset[Grant]

    def allows(self, grant: Grant) -> bool:
        """This tells whether the grant is held."""
        return grant in self.grants

    def plus(self, *grants: Grant) -> "Policy":
        """This is a policy with further grants: ``OBSERVE.plus(Grant.WRITE)``."""
        return Policy(self.grants.union(grants))

    def require(self, grant: Grant, action: str) -> None:
        """This raises PolicyDenied, naming the action, unless the grant is held; the audit log tells."""
        if grant not in self.grants:
            denied = PolicyDenied(action, grant.value)
            _audit.warning("refused: %s", denied)
            raise denied


READ_ONLY = Policy(frozenset({Grant.READ_MEMORY, Grant.READ_REGISTERS}))
"""The default policy of codepacks: look, and change nothing, not even when the guest runs."""

OBSERVE = READ_ONLY.plus(Grant.PAUSE, Grant.BREAKPOINT)
"""The default policy of a session: look, and stop the guest for it.

What that costs the guest is time; no register and no byte of its memory is another afterwards.
"""
