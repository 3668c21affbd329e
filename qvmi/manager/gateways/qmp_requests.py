"""What a client of the QMP gateway says: bytes in, requests and refusals out, without I/O.

References: QEMU ``docs/interop/qmp-spec.rst`` (section 2.3, issuing commands), ``qobject/json-lexer.c``
(the byte 0xFF, which no UTF-8 has, makes QEMU forget what was begun); RFC 8259.

Nothing that was said is ever handed on as it came: a request is read, judged, and written anew. So what
two readers might understand differently is refused here: names that are there twice, names with escapes,
a second object on a line.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

__all__ = ["MAX_DEPTH", "MAX_REQUEST", "NO_ID", "Refused", "Request", "Requests"]

MAX_REQUEST: Final = 1 << 16
"""The longest request, in bytes; those that are allowed have less than 200."""

MAX_DEPTH: Final = 16
"""The deepest nesting; those that are allowed have 2, and an id is a number or a word."""

NO_ID: Final = msgspec.UNSET
"""The id of a request that has none."""

_KEYS: Final = frozenset({"execute", "arguments", "id"})
_OUT_OF_BAND: Final = "exec-oob"
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_MARK: Final = re.compile(rb'["\\{}\[\]]')
_STRING_MARK: Final = re.compile(rb'["\\]')
# A letter, digit, - or _ that is written as its number: no encoder does that, but who hides a name does.
_HIDDEN: Final = re.compile(
    rb"(?<!\\)(?:\\\\)*\\u00(?:2[dD]|3[0-9]|4[1-9a-fA-F]|5[0-9aAfF]|6[1-9a-fA-F]|7[0-9aA])"
)
_FORGET: Final = b"\xff"
_BLANK: Final = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class Request:
    """This is a request that could be read; whether it is allowed is for others to say.

    Args:
        command: its name.
        arguments: as they were given.
        id: what the answer is to carry, any JSON; `NO_ID` for nothing.
    """

    command: str
    arguments: dict[str, object]
    id: object = NO_ID


@dataclass(frozen=True, slots=True)
class Refused:
    """This is what could not be taken for a request.

    Args:
        reason: why, in words.
        id: what the answer is to carry.
        fatal: nothing behind it can be understood.
    """

    reason: str
    id: object = NO_ID
    fatal: bool = False


class Requests:
    """This cuts what one client says into requests, however the bytes are split."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._reset()

    def _reset(self) -> None:
        self._at = 0
        self._depth = 0
        self._in_string = False

    @property
    def pending(self) -> int:
        """This is the number of bytes kept for a request that has not ended."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[Request | Refused]:
        """This takes bytes, and gives what is complete now; behind what is fatal there is nothing."""
        if _FORGET in data:
            data = data.rpartition(_FORGET)[2]
            self._buffer.clear()
            self._reset()
            yield Refused("a byte that no UTF-8 has: what was begun is forgotten")
        self._buffer += data
        while (text := self._object()) is not None:
            if isinstance(text, Refused):
                yield text
                return
            yield _read(text)
            yield from self._rest_of_line()

    def _rest_of_line(self) -> Iterator[Refused]:
        """This throws away what stands behind an object on its line, as far as it has come."""
        line, newline, rest = bytes(self._buffer).partition(b"\n")
        if line.strip(_BLANK):
            self._buffer[:] = rest if newline else b""
            yield Refused("a second object on one line: nothing of it is done")

    def _object(self) -> bytes | Refused | None:
        """This takes one object off the buffer; None where none is whole."""
        if not self._depth:
            self._buffer[:] = self._buffer.lstrip(_BLANK)
            self._reset()
            if self._buffer and not self._buffer.startswith(b"{"):
                return Refused("no JSON object", fatal=True)
        end = self._end()
        if isinstance(end, Refused):
            return end
        if end is None:
            if len(self._buffer) > MAX_REQUEST:
                return Refused(f"longer than {MAX_REQUEST} bytes", fatal=True)
            return None
        text = bytes(self._buffer[:end])
        del self._buffer[:end]
        self._reset()
        if len(text) > MAX_REQUEST:
            return Refused(f"longer than {MAX_REQUEST} bytes", fatal=True)
        return text

    def _end(self) -> int | Refused | None:
        """This is where the object ends that the buffer begins with; None where it does not yet."""
        while self._at < len(self._buffer):
            mark = (_STRING_MARK if self._in_string else _MARK).search(self._buffer, self._at)
            if mark is None:
                self._at = len(self._buffer)
                return None
            found = mark[0]
            if found == b"\\":
                if mark.end() == len(self._buffer):
                    self._at = mark.start()
                    return None
                self._at = mark.end() + 1
                continue
            self._at = mark.end()
            if found == b'"':
                self._in_string = not self._in_string
            else:
                self._depth += 1 if found in b"{[" else -1
            if self._depth > MAX_DEPTH:
                return Refused(f"nested deeper than {MAX_DEPTH}", fatal=True)
            if not self._depth:
                return self._at
        return None


class _StrangeError(ValueError):
    """This is something that JSON allows, and that no client of ours needs."""


def _read(text: bytes) -> Request | Refused:
    if _HIDDEN.search(text):
        return Refused("a letter that is written as its number")
    try:
        told = json.loads(
            text.decode(), object_pairs_hook=_once, parse_constant=_constant, parse_float=_finite
        )
        msgspec.json.encode(told)  # half a surrogate pair is no text
    except _StrangeError as error:
        return Refused(str(error))
    except (ValueError, RecursionError):
        return Refused("no JSON")
    if not isinstance(told, dict):
        return Refused("no JSON object")
    return _request(told)


def _request(told: dict[str, object]) -> Request | Refused:
    number = told.get("id", NO_ID)
    if _OUT_OF_BAND in told:
        return Refused("out-of-band execution is not offered", number)
    if strange := sorted(told.keys() - _KEYS):
        return Refused(f"an unexpected member {strange[0][:40]!r}", number)
    command, arguments = told.get("execute"), told.get("arguments", {})
    if not isinstance(command, str) or not _NAME.fullmatch(command):
        return Refused("no name of a command", number)
    if not isinstance(arguments, dict):
        return Refused("arguments that are no object", number)
    return Request(command, arguments, number)


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _StrangeError("a name that is there twice")
    return found


def _constant(name: str) -> object:
    raise _StrangeError(f"{name} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _StrangeError("a number that is too large")
    return number
