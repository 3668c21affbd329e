"""A row of the table: how a guest is tampered with, which codepack must tell it, and what it must show."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from qvmi.codepacks.codepack import Codepack, Finding, Observation
from tests.guests.tamper.mutation import Mutation
from tests.guests.tamper.scene import Scene

__all__ = ["X86_64", "Scenario", "Shown", "Sign", "Way", "explained"]

X86_64: Final = ("6.1", "7.x")
"""The kernels that all of it is done to."""


class Way(StrEnum):
    """This is from where a guest is tampered with."""

    OUTSIDE = "from outside"
    """Its memory is written to, as a rootkit in it would."""
    INSIDE = "from inside"
    """A program in it does it."""


@dataclass(frozen=True, slots=True)
class Shown:
    """This is what one view must show.

    Attributes:
        view: the kernel's structure.
        present: whether it is in there.
        address: where; None where that is not known to the test.
        facts: what the view must show, as the guest itself or the test has it.
        data: the bytes there, in hexadecimal; None for whatever.
    """

    view: str
    present: bool = True
    address: int | None = None
    facts: Mapping[str, object] = field(default_factory=dict)
    data: str | None = None

    def fits(self, one: Observation) -> bool:
        """This tells whether an observation is just that."""
        return (
            (one.view, one.present) == (self.view, self.present)
            and self.address in (None, one.address)
            and self.data in (None, one.data)
            and self.facts.items() <= one.facts.items()
        )


@dataclass(frozen=True, slots=True)
class Sign:
    """This is a finding that there must be.

    Attributes:
        claim: what it claims, or a part of that.
        evidence: what its views must show, each among others.
        severity: how bad it must be.
        only: whether no other view may show it to be there.
        prompt: whether it must be believed after two looks, without time to settle.
    """

    claim: str
    evidence: tuple[Shown, ...]
    severity: str = "high"
    only: bool = False
    prompt: bool = False

    def __post_init__(self) -> None:
        """Refuse a sign without evidence."""
        assert self.evidence

    def fits(self, finding: Finding, technique: str) -> bool:
        """This tells whether a finding is that one."""
        views = {one.view for one in finding.evidence if one.present}
        wanted = {one.view for one in self.evidence if one.present}
        return (
            self.claim in finding.claim
            and (finding.severity, finding.technique) == (self.severity, technique)
            and all(any(map(one.fits, finding.evidence)) for one in self.evidence)
            and (not self.only or views == wanted)
            and (not self.prompt or not finding.settle_s)
        )


@dataclass(frozen=True, slots=True)
class Scenario:
    """This is a way to tamper with a guest.

    Attributes:
        name: it in words.
        codepack: the name of the one that must tell it.
        technique: as which technique of MITRE ATT&CK.
        way: from where.
        tamper: does it for the length of a block, and gives what must be found.
        pack: makes the codepack as it is after some looks.
        on_arm64: whether it is done to an arm64 guest as well.
        mutations: of the detector, each of which must make the scenario fail.
        learns: whether the codepack must have seen the guest before; all others tell it at first sight.
        still: whether the guest stands still meanwhile; nothing else may then be found.
        depends: whether the evidence depends on the moment, and later looks may have it, too.
        stays: whether it is told on when it was undone: rights that somebody had are not forgotten.
    """

    name: str
    codepack: str
    technique: str
    way: Way
    tamper: Callable[[Scene], AbstractContextManager[tuple[Sign, ...]]]
    pack: Callable[[], Codepack]
    on_arm64: bool = False
    mutations: tuple[Mutation, ...] = ()
    learns: bool = False
    still: bool = False
    depends: bool = False
    stays: bool = False

    def told(self, signs: Sequence[Sign], findings: Iterable[Finding]) -> list[Finding | None]:
        """These are the findings that fit the signs; None for one that is missing."""
        found = list(findings)
        return [
            next((one for one in found if sign.fits(one, self.technique)), None) for sign in signs
        ]


def explained(findings: Iterable[Finding]) -> str:
    """This is what was found instead, for whoever reads why a test failed."""
    return "\n".join(
        f"{one.technique} {one.severity} {one.claim}\n"
        + "\n".join(f"    {shown}" for shown in one.evidence)
        for one in findings
    )
