"""What is told of each step of a response: to the bus, to the audit log, and to whoever watches."""

from enum import StrEnum
from typing import Final

import msgspec

__all__ = ["HOLDER", "NOTICE", "RESPONSE", "Notice", "Outcome", "Record"]

HOLDER: Final = "response"
"""Who acts: its name on the bus, and in the policy."""

RESPONSE: Final = "response"
"""The kind of the messages that tell of steps."""


NOTICE: Final = "notice"
"""The kind of the messages that playbooks publish, unless they name another."""


class Outcome(StrEnum):
    """This is what became of a step."""

    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"
    WOULD_DO = "would-do"
    LEFT_OUT = "left-out"
    UNDONE = "undone"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """This is the body of messages of the kind ``response``.

    Args:
        playbook: which one.
        run: which run of it; what ``qvmi respond undo`` takes.
        step: the number of the step, from 1; 0 for what is said of the run as a whole.
        word: the step, as the playbook names it; empty for step 0.
        outcome: what became of it.
        what: what was done, or would be, in words.
        problem: why it was not; empty where it was.
        alerts: the hashes of the evidence of the alerts that led to it.
        paused_s: for how long the guest has stood still for this run so far, in seconds.
        alert_age_s: how long after the first of them was raised, in seconds.
    """

    playbook: str
    run: str
    step: int
    word: str
    outcome: Outcome
    what: str
    problem: str = ""
    alerts: tuple[str, ...] = ()
    paused_s: float = 0.0
    alert_age_s: float = 0.0

    @property
    def in_words(self) -> str:
        """This is the record as one line."""
        step = f"step {self.step} ({self.word})" if self.step else "the run"
        why = f": {self.problem}" if self.problem else ""
        still = f"; the guest stood still for {self.paused_s:.3f} s" if self.paused_s else ""
        return f"{self.playbook} {self.run}: {step} {self.outcome}: {self.what}{why}{still}"


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """This is the body of what a playbook's step ``message`` publishes, whatever kind it names.

    Args:
        text: what it says.
        playbook: which one.
        run: which run of it.
        alerts: the hashes of the evidence of the alerts that led to it.
    """

    text: str
    playbook: str
    run: str
    alerts: tuple[str, ...]
