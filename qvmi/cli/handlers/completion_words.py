"""The words that can be typed at each place of a command line, read from the parser itself."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from qvmi.cli.declared.arguments import make_parser

__all__ = ["Option", "Words", "all_words"]

_FILES: Final = frozenset({"FILE", "FOLDER", "ADDR"})
"""What values are called that may be files; a socket is one, too."""


@dataclass(frozen=True, slots=True)
class Option:
    """This is an option.

    Args:
        flags: its names, such as ``-o`` and ``--output``.
        value: what its value is called; empty for none.
        text: its help.
    """

    flags: tuple[str, ...]
    value: str
    text: str

    @property
    def is_file(self) -> bool:
        """This tells whether its value may be a file."""
        return self.value in _FILES


@dataclass(frozen=True, slots=True)
class Words:
    """This is what can be typed behind a command, or before one.

    Args:
        name: of the command; empty before one.
        text: its summary.
        options: in the order of its help.
        choices: the words that its own arguments can be, the commands themselves before one.
    """

    name: str
    text: str
    options: tuple[Option, ...]
    choices: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """This is everything that can be typed."""
        return (*self.choices, *(flag for option in self.options for flag in option.flags))


def all_words() -> tuple[Words, ...]:
    """This reads the parser: first what stands before a command, then each command."""
    return tuple(_all_words(make_parser()))


# argparse tells in no other way what it was given than by the names used below.


def _all_words(parser: argparse.ArgumentParser) -> Iterator[Words]:
    for action in parser._actions:  # noqa: SLF001
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            summaries = {one.dest: one.help or "" for one in action._choices_actions}  # noqa: SLF001
            yield Words("", "", _options(parser), tuple(summaries))
            for name, summary in summaries.items():
                own = action.choices[name]
                yield Words(name, summary, _options(own), _choices(own))


def _options(parser: argparse.ArgumentParser) -> tuple[Option, ...]:
    return tuple(
        Option(
            flags=tuple(action.option_strings),
            value="" if action.nargs == 0 else str(action.metavar or action.dest),
            text=action.help or "",
        )
        for action in parser._actions  # noqa: SLF001
        if action.option_strings and action.help is not argparse.SUPPRESS
    )


def _choices(parser: argparse.ArgumentParser) -> tuple[str, ...]:
    return tuple(
        str(choice)
        for action in parser._actions  # noqa: SLF001
        if not action.option_strings
        for choice in action.choices or ()
    )
