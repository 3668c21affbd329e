"""An error that travels: what the manager raises is raised where it was asked."""

from typing import Final, Self

import msgspec

from qvmi import errors
from qvmi.errors import QvmiError

__all__ = ["Refusal"]

_KINDS: Final[dict[str, type[QvmiError]]] = {name: getattr(errors, name) for name in errors.__all__}
MAX_TEXT: Final = 4096
"""Letters of an error that travel; the longest, on memory that cannot be reached, has some 1,500."""
MAX_VALUE: Final = 512
"""Letters of each attribute that is text. An error has five at most, and a letter takes six bytes in JSON:
with what it says that fits into a message, whatever was asked."""

Plain = str | int | float | bool | None


class Refusal(msgspec.Struct, frozen=True):
    """This is an error of qvmi's as a message has it.

    Args:
        kind: the name of its class.
        text: what it says.
        values: its attributes, those that are plain.
    """

    kind: str
    text: str
    values: dict[str, Plain] = {}

    @classmethod
    def of(cls, error: QvmiError) -> Self:
        """This is the form of an error."""
        values = {
            name: value[:MAX_VALUE] if isinstance(value, str) else value
            for name, value in vars(error).items()
            if isinstance(value, Plain | None)
        }
        return cls(type(error).__name__, str(error)[:MAX_TEXT], values)

    def error(self) -> QvmiError:
        """This is the error again; one of a class that this version does not know is a QvmiError."""
        kind = _KINDS.get(self.kind, QvmiError)
        error = kind.__new__(kind)
        error.args = (self.text,)
        vars(error).update(self.values)
        return error
