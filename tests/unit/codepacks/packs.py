"""Codepacks for tests: what they do is given to them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from qvmi.codepacks.codepack import Finding, Observation, Severity, Unseen
from qvmi.memory.physical import PhysicalMemory
from qvmi.policy import Grant
from qvmi.semantics.guest_os import GuestOS

__all__ = ["ScriptedPack", "finding", "quiet"]


def finding(key: str = "key", *, claim: str = "something is wrong") -> Finding:
    """Makes a finding."""
    return Finding(
        claim=claim,
        severity=Severity.HIGH,
        technique="T1014",
        key=key,
        evidence=(Observation(view="a", present=True), Observation(view="b", present=False)),
    )


def quiet(guest: GuestOS, memory: PhysicalMemory) -> Iterable[Finding]:  # noqa: ARG001 - the contract's
    """Finds nothing, without looking."""
    return []


@dataclass
class ScriptedPack:
    """A codepack that runs a function of the test."""

    inspect: Callable[[GuestOS, PhysicalMemory], Iterable[Finding | Unseen]] = quiet
    name: str = "scripted"
    interval_s: float = 0.001
    grants: frozenset[Grant] = field(default_factory=frozenset)
