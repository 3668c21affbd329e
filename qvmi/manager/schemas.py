"""The JSON Schemas of all messages on the bus: those of codepacks, and those of who manages and responds."""

from collections.abc import Mapping
from typing import Final

from qvmi.codepacks.schemas import schemas
from qvmi.manager.accounts import MACHINE
from qvmi.manager.response.records import NOTICE, RESPONSE, Notice, Record
from qvmi.remote.messages import MachineState

__all__ = ["all_schemas"]

_BODIES: Final[Mapping[str, type]] = {
    MACHINE: MachineState,
    RESPONSE: Record,
    NOTICE: Notice,
}
"""What the body of a message is, by its kind."""


def all_schemas() -> Mapping[str, dict[str, object]]:
    """These are the schemas by name."""
    return schemas(_BODIES)
