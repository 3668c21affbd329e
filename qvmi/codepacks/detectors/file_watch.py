"""The files of a guest that a codepack looks at, found in its page cache from time to time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from qvmi.codepacks.codepack import Unseen
from qvmi.errors import WalkFailed
from qvmi.semantics.guest_os import CachedFile, GuestOS
from qvmi.view import Provenance

__all__ = ["MAX_CONTENT", "FileWatch", "content_of", "is_named"]

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
        left_out: files that the last search has found, and that are too many to be looked at.
    """

    every_s: float = 10.0
    searches: int = field(default=0, init=False)
    newest: int = field(default=0, init=False)
    left_out: int = field(default=0, init=False)
    _found: tuple[CachedFile, ...] = field(default=(), init=False)
    _searched: float | None = field(default=None, init=False)
    _epoch: int = field(default=0, init=False)

    def files(
        self, guest: GuestOS, paths: Sequence[str], label: Provenance
    ) -> tuple[CachedFile, ...]:
        """These are the files whose paths end so.

        Args:
            guest: whose they are.
            paths: of files, which begin with ``/``; of all that is in a folder, which end with it.
            label: of a listing of this look, by whose clock it is time.
        """
        searched = self._searched
        if searched is None or label.epoch != self._epoch or label.at >= searched + self.every_s:
            listing = guest.cached_files()
            found = [file for file in listing if any(is_named(file.path, one) for one in paths)]
            self._found, self.left_out = tuple(found[:_MAX_FILES]), len(found[_MAX_FILES:])
            self._searched, self._epoch = label.at, label.epoch
            self.newest = max((file.changed for file in listing), default=0)
            self.searches += 1
        return self._found

    def unseen(self) -> Iterator[Unseen]:
        """This tells of what the last search has left out."""
        if self.left_out:
            reason = f"{self.left_out} of such files more than are looked at"
            yield Unseen(what="page cache", reason=reason)

    def contents(
        self, guest: GuestOS, paths: Sequence[str], label: Provenance
    ) -> Iterator[tuple[CachedFile, bytes]]:
        """This iterates the files whose paths end so, and what is in memory of their beginnings now."""
        for file in self.files(guest, paths, label):
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


def is_named(path: str, wanted: str) -> bool:
    """This tells whether a file is one of those that a path means, whatever root it lies below."""
    return wanted in path if wanted.endswith("/") else path.endswith(wanted)
