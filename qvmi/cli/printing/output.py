"""Where results and messages go: each line harmless, the result on stdout and all else on stderr."""

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TextIO

from qvmi.cli.printing.escape import escaped
from qvmi.errors import UsageError

if TYPE_CHECKING:
    from qvmi.cli.printing.table import Table

__all__ = ["Output", "ReaderGone"]

_DELETE: Final = "\x7f"


class ReaderGone(Exception):
    """Whoever read the output, such as ``head``, has seen enough and ended."""


class Output:
    """This writes what a command has to say.

    Args:
        result: stdout, or what stands for it.
        messages: stderr, or what stands for it.

    Attributes:
        json: whether the result is one JSON document.
        told: the error that was told last as a record of the log, which need not be told again.
    """

    def __init__(self, result: TextIO, messages: TextIO) -> None:
        self._result = result
        self._messages = messages
        self.json = False
        self.told: BaseException | None = None

    @classmethod
    def of_process(cls) -> "Output":
        """This writes to the process's own stdout and stderr."""
        return cls(_lossless(sys.stdout or _unwritable()), _lossless(sys.stderr or _nowhere()))

    @property
    def stream(self) -> TextIO:
        """This is where the result goes, for what asks a stream about itself."""
        return self._result

    @property
    def is_terminal(self) -> bool:
        """This tells whether a person reads the result."""
        return self._result.isatty()

    @property
    def messages_terminal(self) -> TextIO | None:
        """This is where a person reads the messages; None where nobody may."""
        return self._messages if self._messages.isatty() else None

    def can_show(self, text: str) -> bool:
        """This tells whether the result's encoding has these characters."""
        try:
            text.encode(self._result.encoding)
        except UnicodeEncodeError:
            return False
        return True

    def line(self, text: str = "") -> None:
        """This writes one line; what is not printable in it is escaped."""
        self._write(escaped(text) + "\n")

    def part_of_line(self, text: str) -> None:
        """This writes text that a later call of `line` goes on with."""
        self._write(escaped(text))

    def text(self, lines: str) -> None:
        """This writes lines whose guest's words were escaped one by one; tabs between them stay."""
        parts = lines.removesuffix("\n").split("\n")
        self._write("".join(f"{_escaped_cells(line)}\n" for line in parts))

    def printed(self, text: str) -> None:
        """This writes what code of the user's prints, as it is."""
        self._write(text)

    def table(self, table: "Table") -> None:
        """This writes a table: drawn on a terminal, aligned text elsewhere."""
        if self.is_terminal:
            from qvmi.cli.printing.terminal import drawn

            self._write(drawn(table, self._result))
        else:
            from qvmi.cli.printing.table import plain_lines

            self._write("".join(f"{line}\n" for line in plain_lines(table)))

    def document(self, value: object) -> None:
        """This writes one JSON document as one line of ASCII, which is harmless everywhere."""
        import json

        import msgspec

        text = json.dumps(msgspec.to_builtins(value), separators=(",", ":"))
        self._write(text.replace(_DELETE, "\\u007f") + "\n")

    def raw(self, data: bytes) -> None:
        """This writes bytes as they are."""
        self.flush()
        try:
            self._result.buffer.write(data)
        except OSError as error:
            raise _lost(error) from error

    def message(self, text: str, details: Iterable[str] = ()) -> None:
        """This writes a message for people, its details below it."""
        first, *more = [*(text.splitlines() or [""]), *details]
        lines = [f"qvmi: {escaped(first)}", *(f"  {escaped(line)}" for line in more)]
        # Where nobody can be told, there is nobody to tell that either.
        with suppress(OSError):
            self._messages.write("\n".join(lines) + "\n")
            self._messages.flush()

    def flush(self) -> None:
        """This hands what was written to the reader.

        Raises:
            ReaderGone: there is none any more.
            UsageError: it cannot be written, as on a full disk.
        """
        try:
            self._result.flush()
        except OSError as error:
            raise _lost(error) from error

    def drop(self) -> None:
        """This forgets what was not handed over; else Python would try again at its end."""
        with suppress(OSError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - pathlib takes longer to import than this
            os.dup2(nowhere.fileno(), self._result.fileno())

    def _write(self, text: str) -> None:
        try:
            self._result.write(text)
        except OSError as error:
            raise _lost(error) from error


def _escaped_cells(line: str) -> str:
    return "\t".join(map(escaped, line.split("\t")))


# Python's own streams are None where they were closed before it began. These stand for them, and are
# open until the end; pathlib takes longer to import than they are worth.


def _unwritable() -> TextIO:
    """This stands for a stdout that was closed: what is written to it fails as it would there."""
    return open(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")  # noqa: PTH123 - as above


def _nowhere() -> TextIO:
    """This stands for a stderr that was closed: nobody wants to be told."""
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123 - as above


def _lossless(stream: TextIO) -> TextIO:
    """This makes a stream escape what its encoding lacks."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        with suppress(OSError):  # it writes what is waiting; the next flush tells if it cannot
            reconfigure(errors="backslashreplace")
    return stream


def _lost(error: OSError) -> Exception:
    if isinstance(error, BrokenPipeError):
        return ReaderGone()
    return UsageError(f"the output cannot be written: {error.strerror}")
