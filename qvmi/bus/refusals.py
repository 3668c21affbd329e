"""What was refused on the bus, told to the audit log in a way that a flood of refusals cannot fill."""

import logging
from collections import Counter
from typing import Final

from qvmi.errors import AuditFailed

__all__ = ["MAX_SPEAKERS", "Refusals"]

MAX_SPEAKERS: Final = 256
"""Speakers counted by name: as many as the broker lets in. Further ones are counted together."""

_MAX_REASON: Final = 200
"""Letters of a reason in the audit log; it may quote what a stranger sent."""

_audit: Final = logging.getLogger("qvmi.audit")
_log: Final = logging.getLogger(__name__)


class Refusals:
    """This counts refusals by speaker, and tells of the first, the second, the fourth, and so on.

    So the audit log names everybody who was refused something, and a million refusals are twenty lines.

    Attributes:
        counts: how often each was refused something.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def note(self, speaker: str, reason: str) -> None:
        """This counts one more refusal of somebody."""
        if speaker not in self.counts and len(self.counts) >= MAX_SPEAKERS:
            speaker = "others"
        self.counts[speaker] += 1
        count = self.counts[speaker]
        if count & (count - 1) == 0:
            _tell(f"refused on the bus: {speaker}, {count} until now: {reason[:_MAX_REASON]}")


def _tell(text: str) -> None:
    try:
        _audit.warning(text)
    except AuditFailed as error:  # it was refused all the same, which is all that can be done
        _log.error("%s: %s", text, error)
