"""The files of a guest that a codepack looks at, found in its page cache from time to time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from qvmi.errors import WalkFailed
from qvmi.semantics.guest_os import CachedFile, GuestOS

__all__ = ["MAX_CONTENT", "FileWatch", "content_of"]

MAX_CONTENT: Final = 64 << 10
"""Bytes of a file that are looked at: configuration is shorter."""
_MAX_FILES: Final = 4096
"""Files that are looked at; of a system's own there are some hundred."""


@dataclass(slots=True)
class FileWatch:
    """This finds files by the ends of their paths, whatever root they lie below.

    All files that have pages in memory are gone through for that, which takes some microseconds for
    each: so it is done seldom.

    Args:
        every_s: from one search to the next, by the clock of the listings.

    Attributes:
        searches: how often it was done.
        newest: when the file was changed that was changed last, of all.
    """

    every_s: float = 10.0
    searches: int = field(default=0, init=False)
    newest: int = field(default=0, init=False)
    _found: tuple[CachedFile, ...] = field(default=(), init=False)
    _searched: float | None = field(default=None, init=False)
    _epoch: int = field(default=0, init=False)

    def files(self, guest: GuestOS, paths: Sequence[str]) -> tuple[CachedFile, ...]:
        """These are the files whose paths end so.

        Args:
            guest: whose they are.
            paths: of files, which begin with ``/``; of all that is in a folder, which end with it.
        """
        label = guest.processes().provenance
        searched = self._searched
        if searched is None or label.epoch != self._epoch or label.at >= searched + self.every_s:
            listing = guest.cached_files()
            wanted = (file for file in listing if _is_wanted(file.path, paths))
            self._found = tuple(islice(wanted, _MAX_FILES))
            self._searched, self._epoch = label.at, label.epoch
            self.newest = max((file.changed for file in listing), default=0)
            self.searches += 1
        return self._found

    def contents(self, guest: GuestOS, paths: Sequence[str]) -> Iterator[tuple[CachedFile, bytes]]:
        """This iterates the files whose paths end so, and what is in memory of their beginnings now."""
        for file in self.files(guest, paths):
            found = content_of(guest, file)
            if found is None:
                self._searched = None  # it is gone: search again at once
            else:
                yield file, found[0]


def content_of(guest: GuestOS, file: CachedFile) -> tuple[bytes, bool] | None:
    """This is what is in memory of the beginning of a file, and whether it is all; None where it is gone."""
    try:
        pieces = guest.file_content(file, MAX_CONTENT)
    except WalkFailed:
        return None
    data = b"".join(piece.data for piece in pieces)
    return data, len(data) == min(file.size, MAX_CONTENT)


def _is_wanted(path: str, paths: Sequence[str]) -> bool:
    return any(
        wanted in path if wanted.endswith("/") else path.endswith(wanted) for wanted in paths
    )
