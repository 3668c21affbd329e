"""What is scanned for: YARA rules in files, folders or as text, or literal patterns that need no rules."""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, Never, Self

from qvmi.errors import UsageError
from qvmi.settings import is_named_pipe

__all__ = ["RuleSource", "ScanRules"]

_HEX: Final = re.compile(r"[0-9A-Fa-f?~()\[\]|\s-]+")
"""What YARA's hexadecimal patterns are made of; nothing in it ends one."""
_MAX_FILES: Final = 20_000
"""Files of rules in a folder and below; the largest public collections have a quarter of it."""
_SUFFIXES: Final = frozenset({".yar", ".yara"})
"""What files of rules are called."""
_MAX_SOURCE: Final = 64 << 20
"""Bytes of rules; the largest public collections have a tenth of it."""


@dataclass(frozen=True, slots=True)
class RuleSource:
    """This is YARA rules as text.

    Args:
        text: the rules.
        origin: what the compiler calls them in its messages.
        folder: where they include other files from; empty for nowhere else than here.
    """

    text: str
    origin: str
    folder: str = ""


@dataclass(frozen=True, slots=True)
class ScanRules:
    """This is everything that one scan looks for.

    Args:
        sources: of the rules.
    """

    sources: tuple[RuleSource, ...]

    def __post_init__(self) -> None:
        if not self.sources:
            raise UsageError("scan for what? Give rules or a pattern")

    @classmethod
    def of(cls, rules: "ScanRules | str | Path") -> "ScanRules":
        """This takes rules in any form: text is YARA's language, a path leads to a file of it.

        Raises:
            UsageError: the file cannot be read.
        """
        if isinstance(rules, ScanRules):
            return rules
        if isinstance(rules, Path):
            return cls.of_files((rules,))
        return cls((RuleSource(rules, "rules"),))

    @classmethod
    def of_files(cls, paths: Iterable[Path]) -> Self:
        """This reads rules from files.

        Raises:
            UsageError: one cannot be read.
        """
        return cls(tuple(map(_read, paths)))

    @classmethod
    def of_places(cls, paths: Iterable[Path]) -> Self:
        """This reads rules from files, and from all files of rules in folders and below.

        Raises:
            UsageError: one cannot be read, as a folder below, is too large, or a folder has none.
        """
        files = [file for path in paths for file in _files(_at_home(path))]
        sources, left = [], _MAX_SOURCE
        for file in files:
            sources.append(_read(file))
            left -= len(sources[-1].text)
            if left < 0:
                raise UsageError(f"the rules up to {file} are more than {_MAX_SOURCE >> 20} MiB")
        return cls(tuple(sources))

    @classmethod
    def of_patterns(cls, strings: Iterable[str] = (), hexes: Iterable[str] = ()) -> Self:
        """This makes one rule, ``string`` or ``hex``, of all patterns of a kind.

        Args:
            strings: text that is looked for as UTF-8; each is the pattern ``$1``, ``$2`` and so on.
            hexes: bytes as YARA writes them, such as ``DE AD ?? EF``.

        Raises:
            UsageError: one is empty, or has what no such pattern has.
        """
        literals = [_literal(text) for text in strings]
        given = [_hexadecimal(digits) for digits in hexes]
        kinds = (("string", literals), ("hex", given))
        return cls(tuple(_rule(name, patterns) for name, patterns in kinds if patterns))

    def __add__(self, other: "ScanRules") -> "ScanRules":
        """This looks for both."""
        return ScanRules(self.sources + other.sources)


def _read(path: Path) -> RuleSource:
    try:
        if is_named_pipe(path):
            raise UsageError(f"{path} is a pipe and no file of rules: name another one")
        with path.open("rb") as file:
            data = file.read(_MAX_SOURCE + 1)
        text = data.decode()
    except OSError as error:
        raise UsageError(f"cannot read the rules in {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"the rules in {path} are no UTF-8") from error
    if len(data) > _MAX_SOURCE:
        raise UsageError(f"the rules in {path} are more than {_MAX_SOURCE >> 20} MiB")
    return RuleSource(text, str(path), str(path.absolute().parent))


def _at_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:  # nobody is called that
        raise UsageError(f"cannot read the rules in {path}: {error}") from error


def _files(path: Path) -> list[Path]:
    """These are the files of rules that a path leads to: itself, or those in the folder, by name."""
    try:
        if not path.is_dir():
            return [path]  # whether it can be read shows when it is
        files = sorted(islice(_rule_files(path), _MAX_FILES + 1))
    except OSError as error:
        raise UsageError(
            f"cannot read the rules in {error.filename or path}: {error.strerror}"
        ) from error
    if not files:
        raise UsageError(f"no rules in {path}: it has no file that ends in .yar or .yara")
    if len(files) > _MAX_FILES:
        raise UsageError(f"more than {_MAX_FILES} files of rules in {path}: name a part of them")
    return files


def _rule_files(path: Path) -> Iterator[Path]:
    """These are the files of rules in a folder and below; OSError where one of them cannot be read."""
    for folder, _, names in os.walk(path, onerror=_raise):
        for one in (Path(folder, name) for name in names):
            if one.suffix in _SUFFIXES and one.is_file():
                yield one


def _raise(error: OSError) -> Never:
    raise error


def _literal(text: str) -> str:
    if not text:
        raise UsageError("an empty string is everywhere")
    return text.encode("utf-8", "surrogateescape").hex(" ")


def _hexadecimal(digits: str) -> str:
    if not _HEX.fullmatch(digits):
        raise UsageError(f"{digits!r} is no pattern of bytes, such as DE AD ?? EF")
    return digits


def _rule(name: str, patterns: list[str]) -> RuleSource:
    lines = "".join(f"    ${number} = {{ {one} }}\n" for number, one in enumerate(patterns, 1))
    text = f"rule {name} {{\n  strings:\n{lines}  condition:\n    any of them\n}}\n"
    return RuleSource(text, f"--{name}")
