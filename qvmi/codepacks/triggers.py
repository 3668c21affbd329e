"""What makes a codepack look before its interval is over: events of the guest, and questions of others."""

from dataclasses import dataclass
from typing import Final

from qvmi.codepacks.codepack import Codepack
from qvmi.errors import CodepackError
from qvmi.semantics.rows.events import EventKind

__all__ = ["MIN_GAP_S", "NO_TRIGGERS", "Triggers", "triggers_of"]

MIN_GAP_S: Final = 0.1
"""Shortest time between two looks unless told otherwise: a storm of forks is no storm of looks."""


@dataclass(frozen=True, slots=True)
class Triggers:
    """This is what a codepack looks at once for, besides its interval.

    Args:
        events: kinds of events of the guest. That some were missed counts as one of each.
        answers: whether it answers what other codepacks ask it over the bus, by a look.
        min_gap_s: shortest time from the start of one look to the start of the next because of these.
    """

    events: frozenset[EventKind] = frozenset()
    answers: bool = False
    min_gap_s: float = MIN_GAP_S


NO_TRIGGERS: Final = Triggers()
"""Those of a codepack that looks at its interval alone."""


def triggers_of(codepack: Codepack) -> Triggers:
    """These are a codepack's own: its attribute ``triggers``, if it has one.

    Raises:
        CodepackError: that is something else.
    """
    triggers: object = getattr(codepack, "triggers", None) or NO_TRIGGERS
    if not isinstance(triggers, Triggers):
        raise CodepackError(codepack.name, f"its triggers are a {type(triggers).__name__}")
    return triggers
