"""A playbook: on which alerts it is run, and which steps it then takes."""

from enum import StrEnum
from typing import Final

import msgspec

from qvmi.codepacks.codepack import Severity
from qvmi.manager.response.steps import Step

__all__ = [
    "HOUR_S",
    "MAX_PER_HOUR",
    "Agreement",
    "AtExit",
    "Manner",
    "OnFailure",
    "OnRestart",
    "Playbook",
    "Question",
    "Same",
    "When",
]

HOUR_S: Final = 3600.0

MAX_PER_HOUR: Final = 60
"""Most runs of a playbook in an hour that can be asked for: each may stop the guest, and fill a disk."""


class OnFailure(StrEnum):
    """This is what becomes of the steps behind one that failed or was refused."""

    GO_ON = "go-on"
    STOP = "stop"


class OnRestart(StrEnum):
    """This is what becomes of a run that was cut off, when the next responder starts."""

    FINISH = "finish"
    UNDO = "undo"
    LEAVE = "leave"


class AtExit(StrEnum):
    """This is what becomes of what was done when the responder ends."""

    KEEP = "keep"
    UNDO = "undo"


class Same(StrEnum):
    """This is what two alerts must have in common."""

    PID = "pid"
    ADDRESS = "address"


class Agreement(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """This asks for an alert of a second codepack about the same thing.

    Args:
        codepack: the second one.
        same: what both alerts must name.
        within_s: how far apart they may come, in seconds; whichever comes first.
    """

    codepack: str
    same: Same
    within_s: float


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """This asks a codepack over the bus whether it sees the same.

    Args:
        codepack: whom.
        deadline_s: how long its answer is waited for, in seconds.
    """

    codepack: str
    deadline_s: float = 10.0


class When(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """This says which alerts a playbook is for; what is left out is not asked.

    Args:
        codepack: whose alerts.
        severity: how bad they are at least.
        technique: the id in MITRE ATT&CK; one without a part behind the dot stands for all its parts.
        agree: who must have seen the same by itself.
        ask: who is asked whether it sees the same.
    """

    codepack: str | None = None
    severity: Severity = Severity.LOW
    technique: str | None = None
    agree: Agreement | None = None
    ask: Question | None = None


class Manner(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """This says how a playbook is run.

    Args:
        folder: where evidence is kept; empty where no step needs one.
        on_failure: whether the steps behind one that failed are taken.
        on_restart: what becomes of a run that was cut off.
        at_exit: whether what was done is undone when the watch ends.
        at_most_per_hour: how often it is run.
    """

    folder: str = ""
    on_failure: OnFailure = OnFailure.GO_ON
    on_restart: OnRestart = OnRestart.FINISH
    at_exit: AtExit = AtExit.KEEP
    at_most_per_hour: int = 6


class Playbook(Manner, frozen=True):
    """This is one playbook.

    Args:
        name: of 1 to 32 of a-z, 0-9 and -.
        when: on which alerts it is run.
        then: its steps, in order.
    """

    name: str
    when: When
    then: tuple[Step, ...]
