"""A file of a user's that is read at any place, whatever hides behind its name.

References: Linux open(2), ``O_NONBLOCK``: without it opening a FIFO waits for its writer.
"""

import os
import stat
from pathlib import Path
from struct import Struct
from typing import Any, Final

from qvmi.errors import NotADump

__all__ = ["InputFile"]

_KINDS: Final = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISCHR, "a device"),
)


class InputFile:
    """This is an opened regular file; anything else is refused before it is read.

    Args:
        path: of the file.

    Attributes:
        link: a name for the very file that was opened, whoever bears its own by now.
        size: in bytes.
        modified_at: when it was last written to, seconds since the Unix epoch.

    Raises:
        NotADump: it cannot be opened, or is no regular file.
    """

    __slots__ = ("_descriptor", "link", "modified_at", "path", "size")

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        try:
            self._require_regular(path.stat())  # merely opening some devices does something
            self._descriptor = os.open(path, flags)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            why = getattr(error, "strerror", None) or error
            raise NotADump(str(path), f"cannot be opened: {why}") from error
        self.link = Path(f"/proc/self/fd/{self._descriptor}")
        try:
            self.size, self.modified_at = self._measured()
        except BaseException:
            self.close()
            raise

    def read(self, offset: int, size: int) -> bytes:
        """This reads exactly ``size`` bytes.

        Raises:
            NotADump: the file ends before, or cannot be read.
        """
        parts: list[bytes] = []
        here, end = offset, offset + size
        while here < end:
            try:
                part = os.pread(self._descriptor, end - here, here)
            except (OSError, OverflowError) as error:
                raise self.refusal(f"cannot be read at {here:#x}: {error}") from error
            if not part:
                raise self.refusal(f"is cut off at {here:#x}: it must reach {end:#x} at least")
            parts.append(part)
            here += len(part)
        return b"".join(parts)

    def unpack(self, layout: Struct, offset: int) -> tuple[Any, ...]:
        """This reads one struct.

        Raises:
            NotADump: the file ends before, or cannot be read.
        """
        return layout.unpack(self.read(offset, layout.size))

    def refusal(self, problem: str) -> NotADump:
        """This is the error that says why the file cannot be used."""
        return NotADump(str(self.path), problem)

    def close(self) -> None:
        """This closes the file; what was mapped of it stays so."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _measured(self) -> tuple[int, float]:
        try:
            facts = os.fstat(self._descriptor)
        except OSError as error:
            raise self.refusal(f"cannot be looked at: {error.strerror}") from error
        self._require_regular(facts)
        if not facts.st_size:
            raise self.refusal("is empty")
        return facts.st_size, facts.st_mtime

    def _require_regular(self, facts: os.stat_result) -> None:
        if not stat.S_ISREG(facts.st_mode):
            kind = next((name for is_one, name in _KINDS if is_one(facts.st_mode)), "no file")
            raise self.refusal(f"is {kind}: name a regular file")
