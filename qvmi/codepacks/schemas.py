"""What messages on the bus look like, as JSON Schemas that other programs can check and generate code from.

References: JSON Schema 2020-12.
"""

import inspect
from collections.abc import Mapping
from typing import Final

import msgspec

from qvmi.bus.message import MESSAGE_VERSION, Message
from qvmi.bus.receipt import RECEIPT, Receipt
from qvmi.bus.topic import NAME_PATTERN, REPLY, REQUEST
from qvmi.codepacks.alert import Alert, AlertState
from qvmi.codepacks.status import STATUS, Status

__all__ = ["BODIES", "ENVELOPE", "schemas"]

ENVELOPE: Final = "envelope"
"""The schema that every message follows."""

BODIES: Final[Mapping[str, type]] = {
    AlertState.RAISED.value: Alert,
    AlertState.CLEARED.value: Alert,
    STATUS: Status,
    RECEIPT: Receipt,
}
"""What the body of a message is, by its kind. That of a request and of a reply is its service's own."""

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_NAMES: Final = ("id", "vm", "codepack", "kind")


def schemas() -> Mapping[str, dict[str, object]]:
    """These are the schemas by name: of the envelope, and of each kind's body."""
    bodies = {kind: _of_body(kind, body) for kind, body in BODIES.items()}
    return {name: _told(schema) for name, schema in ({ENVELOPE: _of_envelope()} | bodies).items()}


def _told(schema: dict[str, object]) -> dict[str, object]:
    """This is the schema with docstrings as people read them, which some msgspec leave indented."""
    return {name: _told_value(name, value) for name, value in schema.items()}


def _told_value(name: str, value: object) -> object:
    if isinstance(value, dict):
        return _told(value)
    if isinstance(value, list):
        return [_told_value("", one) for one in value]
    return inspect.cleandoc(value) if name == "description" and isinstance(value, str) else value


def _of_body(kind: str, body: type) -> dict[str, object]:
    about = f"The body of qvmi's messages of the kind {kind}"
    return {"$schema": _DIALECT, "title": about, **msgspec.json.schema(body, schema_hook=_anything)}


def _of_envelope() -> dict[str, object]:
    (schema,), definitions = msgspec.json.schema_components([Message], schema_hook=_anything)
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


def _anything(wanted: type) -> dict[str, object]:
    """This is the schema of ``object``, which msgspec has none for."""
    if wanted is not object:
        raise NotImplementedError(wanted)
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
