"""What one look after another lists: what has come since, what has gone, and what a gap may hide."""

from collections.abc import Hashable, Mapping
from typing import Final, Generic, TypeVar

__all__ = ["MAX_HIDDEN", "KnownRows"]

Key = TypeVar("Key", bound=Hashable)
Row = TypeVar("Row")

MAX_HIDDEN: Final = 1 << 14
"""Rows that are kept though no look shows them any more, as they may lie behind a gap. A guest that has a gap
for ever and something new in each look would fill our memory; with more of them all are forgotten, and what
comes to light again is taken for new."""


class KnownRows(Generic[Key, Row]):
    """This remembers what was listed, by what tells one row from another.

    Args:
        rows: what was listed first.
    """

    def __init__(self, rows: Mapping[Key, Row] | None = None) -> None:
        self._rows = dict(rows or {})

    def knows(self, key: Key) -> bool:
        """This tells whether a row was listed, and is not known to be gone."""
        return key in self._rows

    def take(self, now: Mapping[Key, Row], *, is_whole: bool) -> tuple[list[Row], list[Row]]:
        """This takes in a look, and gives the rows that have come since the last one, and that have gone.

        Args:
            now: what it lists.
            is_whole: whether what it does not list is gone; else nothing is known to be.
        """
        came = [row for key, row in now.items() if key not in self._rows]
        unseen = {key: row for key, row in self._rows.items() if key not in now}
        hidden = {} if is_whole or len(unseen) > MAX_HIDDEN else unseen
        self._rows = hidden | dict(now)
        return came, list(unseen.values()) if is_whole else []
