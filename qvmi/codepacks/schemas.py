"""What messages on the bus look like, as JSON Schemas that other programs can check and generate code from.

References: JSON Schema 2020-12.
"""

from collections.abc import Mapping
from inspect import cleandoc
from typing import Any, Final

import msgspec

from qvmi.bus.message import MESSAGE_VERSION, Message
from qvmi.bus.receipt import RECEIPT, Receipt
from qvmi.bus.topic import NAME_PATTERN, REPLY, REQUEST
from qvmi.codepacks.alert import Alert, AlertState
from qvmi.codepacks.question import ConfirmAnswer, ConfirmQuestion
from qvmi.codepacks.questions import LookAnswer
from qvmi.codepacks.status import STATUS, Status

__all__ = ["BODIES", "ENVELOPE", "QUESTIONS", "schemas"]

ENVELOPE: Final = "envelope"
"""The schema that every message follows."""

BODIES: Final[Mapping[str, type]] = {
    AlertState.RAISED.value: Alert,
    AlertState.CLEARED.value: Alert,
    STATUS: Status,
    RECEIPT: Receipt,
}
"""What the body of a message is, by its kind. That of a request and of a reply is its service's own."""

QUESTIONS: Final[Mapping[str, tuple[str, type]]] = {
    "look-answer": ("a reply to a codepack's request whose body is empty", LookAnswer),
    "confirm-question": ("a request to a codepack whether it sees something", ConfirmQuestion),
    "confirm-answer": ("the reply to that", ConfirmAnswer),
}
"""What the bodies of requests to codepacks are, and of their replies, by the name of the schema."""

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_NAMES: Final = ("id", "vm", "codepack", "kind")


def schemas(further: Mapping[str, type] | None = None) -> Mapping[str, dict[str, object]]:
    """These are the schemas by name: of the envelope, and of the bodies that messages have.

    Args:
        further: what the bodies of further kinds are, of which nothing is known here.
    """
    kinds = {**BODIES, **(further or {})}
    bodies = {
        kind: _of_body(f"qvmi's messages of the kind {kind}", body) for kind, body in kinds.items()
    }
    questions = {name: _of_body(about, body) for name, (about, body) in QUESTIONS.items()}
    return {ENVELOPE: _of_envelope()} | bodies | questions


def _of_body(whose: str, body: type) -> dict[str, object]:
    about = f"The body of {whose}"
    schema = _without_margins(msgspec.json.schema(body, schema_hook=_anything))
    return {"$schema": _DIALECT, "title": about, **schema}


def _of_envelope() -> dict[str, object]:
    (schema,), definitions = msgspec.json.schema_components([Message], schema_hook=_anything)
    definitions = _without_margins(definitions)
    struct = definitions["Message"]
    fields = struct["properties"]
    del fields["further"]  # it stands for whatever else there is
    name = {"type": "string", "pattern": f"^{NAME_PATTERN}$"}
    fields |= dict.fromkeys((*_NAMES, "peer", "answers"), name)
    fields["version"] = {"const": MESSAGE_VERSION}
    fields["epoch"] = {"type": "integer", "minimum": 0, "default": 0}
    fields["deadline"] = {"type": "number"}
    struct["required"] = ["version", *(one for one in struct["required"] if one != "version")]
    struct["allOf"] = [_only_in(REQUEST, "deadline"), _only_in(REPLY, "answers"), _PEER]
    return {"$schema": _DIALECT, "title": "A message of qvmi", **schema, "$defs": definitions}


def _without_margins(schema: dict[str, Any]) -> dict[str, Any]:
    """This is a schema whose texts have no margin: up to 0.22 msgspec leaves that of the docstring."""
    return {
        name: _without_margins(value)
        if isinstance(value, dict)
        else cleandoc(value)
        if name == "description"
        else value
        for name, value in schema.items()
    }


def _anything(wanted: type) -> dict[str, object]:
    """This is the schema of ``object``, which msgspec has none for."""
    if wanted is not object:
        raise NotImplementedError(wanted)  # as msgspec asks for, which then says so itself
    return {"description": "any JSON"}  # an empty one would count as none


def _only_in(kind: str, field: str) -> dict[str, object]:
    """This says that one kind of message has a field, and no other has."""
    return {
        "if": {"properties": {"kind": {"const": kind}}},
        "then": {"required": [field]},
        "else": {"properties": {field: False}},
    }


_PEER: Final = {
    "if": {"properties": {"kind": {"enum": [REQUEST, REPLY]}}},
    "then": {"required": ["peer"]},
    "else": {"properties": {"peer": False}},
}
