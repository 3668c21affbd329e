"""Paths of one question about the guest: a file that is met again is not named from scratch again.

References: Linux fs/dcache.c (``d_move`` and its kind hold ``rename_lock``; a dentry keeps its parent from
being freed), fs/namespace.c (mounts are attached under ``mount_lock``).
"""

from typing import Final

from qvmi.semantics.linux.fs.d_path import FilePath, Paths, Place, Way
from qvmi.semantics.linux.structures.effort import Effort

__all__ = ["KnownPaths"]

_MAX_KNOWN: Final = 1 << 14
"""Paths that are remembered: a server has some thousand different files open and mapped."""


class KnownPaths:
    """This names the files that one question meets.

    What is known of a file stands as long as no name and no mount of the guest has changed since, and
    every dentry on the way up to its mount still says the same: one that was freed meanwhile, and used
    again, says something else, or leads to the same path.

    Args:
        paths: names files.
        effort: what the question may cost.

    Attributes:
        effort: likewise.
    """

    def __init__(self, paths: Paths, effort: Effort) -> None:
        self.effort = effort
        self._paths = paths
        self._read = paths.read_dentry
        self._changes: tuple[int, int] | None = None
        self._known: dict[tuple[int, int], tuple[FilePath, Way]] = {}

    def of(self, mount: int, dentry: int) -> FilePath:
        """This names a file as :meth:`Paths.of` does, and raises what that raises."""
        known = self._known.get((mount, dentry))
        if known is not None:
            path, way = known
            self.effort.spend(len(way))
            read = self._read
            for at, held in way:
                if read(at) != held:
                    break
            else:
                if self._paths.changes() == self._changes:
                    return path
        return self._learn(Place(mount, dentry))

    def _learn(self, place: Place) -> FilePath:
        """This names a file; what changes meanwhile is noticed when the file is met again."""
        changes, way = self._paths.changes(), self._paths.way(place)
        path = self._paths.of(place, self.effort)
        if changes != self._changes or len(self._known) >= _MAX_KNOWN:
            self._known.clear()
            self._changes = changes
        if way is not None:
            self._known[place.mount, place.dentry] = path, way
        return path
