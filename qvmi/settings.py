"""Strict TOML files: what is wrong in one is told with the file, the line and the key.

References: TOML v1.0.0; open(2) O_PATH; what OpenSSH's ``StrictModes`` asks of its files (sshd_config(5)).
"""

import os
import re
import stat
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Final, Self, TypeVar

import msgspec

from qvmi.errors import BadSettings

__all__ = [
    "MAX_SETTINGS_BYTES",
    "Table",
    "is_named_pipe",
    "nearest",
    "read_settings",
    "whose_fault",
]

MAX_SETTINGS_BYTES: Final = 256 << 10
"""Bytes of a file; what people write by hand has a few thousand."""

MAX_DEPTH: Final = 16
"""Tables and lists within each other; what people write has 4. Whatever goes through them recurses."""

_OTHERS_WRITE: Final = 0o022
_KINDS: Final = {stat.S_IFDIR: "directory", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}

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


def read_settings(path: Path) -> bytes:
    """This reads a file of settings that nobody else can change: a policy that others write is none.

    A pipe or a device is not even opened.

    Raises:
        BadSettings: it cannot be read, is no file, or somebody else's; says the way out.
    """
    try:
        where = path.resolve(strict=True)
        held = os.open(where, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (OSError, RuntimeError, ValueError) as error:  # a link to itself; a NUL in the name
        raise BadSettings(path, f"cannot be read: {_why(error)}") from error
    try:
        found = os.fstat(held)
        if not stat.S_ISREG(found.st_mode):
            kind = _KINDS.get(stat.S_IFMT(found.st_mode), "device")
            raise BadSettings(path, f"is a {kind} and no regular file: name another one")
        for place, state in ((where, found), (where.parent, where.parent.stat())):
            if fault := whose_fault(place, state):
                raise BadSettings(path, fault)
        with Path(f"/proc/self/fd/{held}").open("rb") as file:
            return file.read(MAX_SETTINGS_BYTES + 1)
    except OSError as error:
        raise BadSettings(path, f"cannot be read: {_why(error)}") from error
    finally:
        os.close(held)


def is_named_pipe(path: Path) -> bool:
    """This tells whether a path leads to a pipe in a folder: to open one waits until somebody writes to it.

    A pipe without a name, as of a shell's ``<(COMMAND)``, is none: whoever writes to it is there.

    Raises:
        OSError: it cannot be looked at.
    """
    return path.is_fifo() and path.resolve().is_fifo()


def whose_fault(path: Path, found: os.stat_result) -> str:
    """This is how somebody else could change a file or what is in a folder, with the way out; or empty.

    In a folder with the sticky bit, such as /tmp, nobody exchanges what is another's.
    """
    if found.st_uid not in (0, os.geteuid()):
        return (
            f"{path} belongs to uid {found.st_uid}, who may change it: chown {os.geteuid()} {path}"
        )
    is_shared = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
    if found.st_mode & _OTHERS_WRITE and not is_shared:
        return (
            f"others may write {path} (mode {stat.S_IMODE(found.st_mode):04o}): chmod go-w {path}"
        )
    return ""


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


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
                raise self.wrong(key, f"is not known{nearest(key, known)}")

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
        what = what.replace(" | null", "")  # which TOML has not: a key that may be left out
        known = tuple(field.encode_name for field in msgspec.structs.fields(form))  # type: ignore[arg-type]  # a Struct's class
        if unknown := _UNKNOWN.search(what):
            if inner:
                return self.wrong(inner, f"has a key {_shown(unknown[1])!r} that is not known")
            return self.wrong(unknown[1], f"is not known{nearest(unknown[1], known)}")
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
    what = found[1] if found and line is not None else message
    return BadSettings(path, f"no TOML: {what}", line=line)


def _names(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


def nearest(word: str, known: Sequence[str]) -> str:
    """This names the word that may have been meant, or all there are."""
    near = get_close_matches(word, known, 1)
    if near:
        return f"; is {near[0]!r} meant?"
    return f"; there are {', '.join(known)}"


def _shown(word: str) -> str:
    return word if len(word) <= _MOST_SHOWN else f"{word[:_MOST_SHOWN]}…"
