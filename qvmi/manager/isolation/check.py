"""What a look at a machine's isolation proved, refuted or could not check."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

__all__ = ["Check", "Finding", "Report", "Verdict", "not_checkable", "proven", "refuted"]


class Verdict(StrEnum):
    """This is what became of a claim; the worst comes last."""

    PROVEN = "proven"
    NOT_CHECKABLE = "not checkable"
    REFUTED = "refuted"


_ORDER = tuple(Verdict)


@dataclass(frozen=True, slots=True)
class Finding:
    """This is one piece of evidence, and what it says about the claim.

    Args:
        verdict: what it proves.
        evidence: what was seen, and where.
        fix: what to do about it; empty where nothing is wrong.
    """

    verdict: Verdict
    evidence: str
    fix: str = ""


def proven(evidence: str) -> Finding:
    """This is evidence that the claim holds."""
    return Finding(Verdict.PROVEN, evidence)


def refuted(evidence: str, fix: str) -> Finding:
    """This is evidence that the claim does not hold."""
    return Finding(Verdict.REFUTED, evidence, fix)


def not_checkable(evidence: str, fix: str) -> Finding:
    """This is what could not be looked at."""
    return Finding(Verdict.NOT_CHECKABLE, evidence, fix)


@dataclass(frozen=True, slots=True)
class Check:
    """This is one claim, and all that was found about it.

    Args:
        name: the claim.
        findings: at least one: nothing looked at is nothing proven.
        decides: whether it counts; advice does not.
    """

    name: str
    findings: tuple[Finding, ...]
    decides: bool = True

    @classmethod
    def of(cls, name: str, findings: Iterable[Finding], *, else_proven: str) -> Self:
        """This is a check that is proven where nothing speaks against it.

        Args:
            name: the claim.
            findings: what was found.
            else_proven: what was looked at, which is the evidence where nothing was found.
        """
        return cls(name, tuple(findings) or (proven(else_proven),))

    @property
    def verdict(self) -> Verdict:
        """This is the worst of its findings'."""
        return _worst(finding.verdict for finding in self.findings)


@dataclass(frozen=True, slots=True)
class Report:
    """This is all that was checked.

    Args:
        checks: in the order in which they are told.
    """

    checks: tuple[Check, ...]

    @property
    def verdict(self) -> Verdict:
        """This is the worst of the checks that decide."""
        return _worst(check.verdict for check in self.checks if check.decides)

    @property
    def paths(self) -> tuple[str, ...]:
        """These are the ways that were found, each in words; empty unless something is refuted."""
        return tuple(
            finding.evidence
            for check in self.checks
            if check.decides
            for finding in check.findings
            if finding.verdict is Verdict.REFUTED
        )


def _worst(verdicts: Iterable[Verdict]) -> Verdict:
    return max(verdicts, key=_ORDER.index, default=Verdict.NOT_CHECKABLE)
