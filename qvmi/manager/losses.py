"""What readers of a bus did not get, as the status that tells of it."""

from typing import Final

from qvmi.codepacks.status import Sight, Status

__all__ = ["TELL_S", "loss_status"]

TELL_S: Final = 1.0
"""How often it is told at most, so that a flood of losses is no flood of messages."""


def loss_status(dropped: int, refused: int) -> Status:
    """This tells of messages that a reader did not get.

    Args:
        dropped: because it was too slow.
        refused: because they were no messages, or not from where they said.
    """
    problem = (
        f"{dropped} messages lost because their reader was slow, "
        f"{refused} refused because they were not what they said"
    )
    return Status(sight=Sight.GAPS, problem=problem, lost=dropped + refused)
