"""Strict TOML files: what is wrong in one is told with the file, the line and the key.

References: TOML v1.0.0.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final, Self, TypeVar

import msgspec

from qvmi.errors import BadSettings

__all__ = ["MAX_SETTINGS_BYTES", "Table"]

MAX_SETTINGS_BYTES: Final = 256 << 10
"""Bytes of a file; what people write by hand has a few thousand."""

MAX_DEPTH: Final = 16
"""Tables and lists within each other; what people write has 4. Whatever goes through them recurses."""

Form = TypeVar("Form")

_UNKNOWN: Final = re.compile(r"unknown field `([^`]*)`")
_MISSING: Final = re.compile(r"missing required field `([^`]*)`")
_PLACE: Final = re.compile(r"(.*?) - at `\$([^`]*)`", re.DOTALL)
_PART: Final = r"""(?:[A-Za-z0-9_-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')"""
_LONG_KEY: Final = re.compile(rf"(?<![A-Za-z0-9_\\-])(?:{_PART}[ \t]*+\.[ \t]*+){{{MAX_DEPTH}}}")
"""No part begins behind a backslash: a quotation mark that is escaped begins none, and need not be tried."""
_LINE: Final = re.compile(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", re.DOTALL)
_BEYOND: Final = 1 << 63
_MOST_SHOWN: Final = 60
"""Letters of a wrong word that a message repeats."""


@dataclass(frozen=True, slots=True)
class Table:
    """This is one table of a TOML file, which knows where it stands.

    Args:
        path: of the file.
        text: the whole file.
        keys: the table's name; empty for the file itself.
        values: what it holds.
    """

    path: str
    text: str
    keys: tuple[str, ...]
    values: Mapping[str, object]

    @classmethod
    def parse(cls, path: str | os.PathLike[str], data: bytes) -> Self:
        """This reads the bytes of a file.

        Raises:
            BadSettings: they are too many, not UTF-8, or no TOML.
        """
        name = os.fspath(path)
        if len(data) > MAX_SETTINGS_BYTES:
            raise BadSettings(name, f"more than {MAX_SETTINGS_BYTES} bytes: it is no such file")
        try:
            text = data.decode("utf-8")
            _require_short_keys(name, text)
            values = tomllib.loads(text)
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise BadSettings(name, "not UTF-8: save it as UTF-8", line=line) from error
        except tomllib.TOMLDecodeError as error:
            raise _not_toml(name, str(error)) from error
        except (RecursionError, ValueError) as error:  # deep nesting; a number of too many digits
            raise BadSettings(name, f"no TOML that can be read: {error}") from error
        _require_plain(name, values)
        return cls(name, text, (), values)

    def table(self, key: str) -> Self:
        """This is a table in this one; empty where there is none.

        Raises:
            BadSettings: there is something else.
        """
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, f"is no table: write [{'.'.join((*self.keys, key))}]")
        return type(self)(self.path, self.text, (*self.keys, key), value)

    def require_known(self, *known: str) -> None:
        """This raises BadSettings at the first key that is none of these."""
        for key in self.values:
            if key not in known:
                raise self.wrong(key, f"is not known{_nearest(key, known)}")

    def read_as(self, form: type[Form]) -> Form:
        """This reads the table as a msgspec.Struct.

        Raises:
            BadSettings: it has not that form.
        """
        try:
            return msgspec.convert(self.values, form, strict=True)
        except msgspec.ValidationError as error:
            raise self._explained(str(error), form) from error

    def wrong(self, key: str, problem: str) -> BadSettings:
        """This is the error that one key of this table is wrong."""
        name = ".".join((*self.keys, _shown(key)))
        return BadSettings(self.path, problem, line=self._line_of(key), key=name)

    def _explained(self, message: str, form: type[object]) -> BadSettings:
        """This turns what msgspec says into an error that says where it is."""
        place = _PLACE.fullmatch(message)
        what, inner = (place[1], place[2].strip(".")) if place else (message, "")
        known = tuple(field.encode_name for field in msgspec.structs.fields(form))  # type: ignore[arg-type]  # a Struct's class
        if unknown := _UNKNOWN.search(what):
            if inner:
                return self.wrong(inner, f"has a key {_shown(unknown[1])!r} that is not known")
            return self.wrong(unknown[1], f"is not known{_nearest(unknown[1], known)}")
        if missing := _MISSING.search(what):
            return self.wrong(f"{inner}.{missing[1]}".strip("."), "is missing: it must be given")
        return self.wrong(inner, what[:1].lower() + what[1:])

    def _line_of(self, key: str) -> int | None:
        """This is the line on which a key of this table is given; None where that is not seen."""
        whole = (*self.keys, *re.split(r"[.\[]", key))
        best, nearest = 0, None
        table: tuple[str, ...] = ()
        for number, line in enumerate(self.text.splitlines(), start=1):
            words = line.strip()
            if words.startswith("["):
                given = table = _names(words.strip("[").partition("]")[0])
            else:
                given = (*table, *_names(words.partition("=")[0])) if "=" in words else ()
            shared = min(len(given), len(whole))
            if shared > best and given[:shared] == whole[:shared]:
                best, nearest = shared, number
        return nearest


def _require_short_keys(path: str, text: str) -> None:
    """This raises BadSettings at a key of very many parts, of which tomllib would keep each beginning."""
    found = _LONG_KEY.search(text)
    if found:
        line = text.count("\n", 0, found.start()) + 1
        raise BadSettings(path, f"a key of more than {MAX_DEPTH} parts", line=line)


def _require_plain(path: str, values: Mapping[str, object]) -> None:
    """This raises BadSettings at what TOML need not have: deep nesting, and numbers beyond 64 bits.

    Neither could be written into a message afterwards.
    """
    level: list[object] = [values]
    for _ in range(MAX_DEPTH):
        inner: list[object] = []
        for held in level:
            if isinstance(held, dict):
                inner += held.values()
            elif isinstance(held, list):
                inner += held
            elif isinstance(held, int) and not -_BEYOND <= held < _BEYOND:
                raise BadSettings(path, "a number beyond 64 bits")
        level = inner
    if level:
        raise BadSettings(path, f"tables or lists within each other, more than {MAX_DEPTH} deep")


def _not_toml(path: str, message: str) -> BadSettings:
    found = _LINE.fullmatch(message)
    line = int(found[2]) if found and found[2] else None
    return BadSettings(path, f"no TOML: {found[1] if found else message}", line=line)


def _names(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


def _nearest(word: str, known: tuple[str, ...]) -> str:
    """This names the word that may have been meant, or all there are."""
    near = get_close_matches(word, known, 1)
    if near:
        return f"; is {near[0]!r} meant?"
    return f"; there are {', '.join(known)}"


def _shown(word: str) -> str:
    return word if len(word) <= _MOST_SHOWN else f"{word[:_MOST_SHOWN]}…"
