"""Messages checked as anybody would who has nothing but the documented schemas."""

import json
from typing import Any, Final

from jsonschema_rs import Draft202012Validator, meta

from qvmi.bus.message import Message
from qvmi.codepacks.schemas import ENVELOPE
from tests.repository.tree import ROOT

__all__ = ["SCHEMAS", "documented", "require_documented"]

SCHEMAS: Final = ROOT / "docs" / "schemas"


def documented(name: str) -> dict[str, Any]:
    """Gives a schema, by the name of its file."""
    schema: dict[str, Any] = json.loads((SCHEMAS / f"{name}.json").read_text())
    meta.validate(schema)
    return schema


def require_documented(message: Message, *, body: str | None = None) -> None:
    """Checks what travels; the body only where its schema is named."""
    wire = json.loads(message.to_json())
    Draft202012Validator(documented(ENVELOPE)).validate(wire)
    if body:
        Draft202012Validator(documented(body)).validate(wire["body"])
