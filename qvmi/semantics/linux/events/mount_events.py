"""File systems that are mounted and unmounted, in the namespaces that have a process.

References: Linux fs/namespace.c (``lock_mount_hash``: each change of a mount counts ``mount_lock`` up;
``touch_mnt_namespace``: changes are numbered, and a namespace keeps the number of its last one).
"""

from collections.abc import Callable
from typing import Final

from qvmi.addr import Va
from qvmi.errors import MemoryFault, WalkFailed
from qvmi.semantics.guest_os import Gap, Mount
from qvmi.semantics.linux.events.event_sink import EventSink
from qvmi.semantics.linux.fs.d_path import Paths
from qvmi.semantics.linux.fs.mount import Mounts
from qvmi.semantics.linux.structures.effort import Effort
from qvmi.semantics.linux.structures.known_rows import KnownRows
from qvmi.semantics.linux.structures.list import ListWalk
from qvmi.semantics.linux.tasks.task import Tasks
from qvmi.semantics.rows.events import EventKind, Missed, Mounted, Unmounted, What

__all__ = ["MountEvents"]

_STEPS: Final = 1 << 17
"""Structures that one look may cost: ten thousand mounts. With more, some are a gap."""
_LOOKS: Final = 3
"""Looks behind a change: a process enters a new namespace a moment after that is made."""

_TRIES: Final = 4
"""Walks until no mount was changed meanwhile, so that what is listed is what is counted."""

_Key = tuple[Va, int, str, str]


class MountEvents:
    """This tells of the mounts of one kernel.

    Args:
        mounts: lists them.
        paths: tells whether any have changed.
        tasks: lists the processes whose namespaces they are in.
        wanted: which kinds are told.
    """

    def __init__(
        self, mounts: Mounts, paths: Paths, tasks: Tasks, wanted: Callable[[EventKind], bool]
    ) -> None:
        self._mounts = mounts
        self._paths = paths
        self._tasks = tasks
        self._wants_mount = wanted(EventKind.MOUNTED)
        self._wants_unmount = wanted(EventKind.UNMOUNTED)
        self._known: KnownRows[_Key, Mount] = KnownRows()
        self._sequence = 0
        self._looks_left = 0
        self._last: int | None = None

    def begin(self, sink: EventSink) -> None:
        """This takes note of what is mounted.

        Raises:
            WalkFailed, MemoryFault: that cannot be done.
        """
        self._sequence = self._paths.changes()[1]
        walk, self._last = self._look()
        self._known = KnownRows(_by_identity(walk))
        self._looks_left = _LOOKS
        sink.gaps("mounts", walk.gaps)

    def glance(self, sink: EventSink) -> None:
        """This does nothing: mounts are looked at in the slower looks."""

    def rescan(self, sink: EventSink) -> None:
        """This looks at all mounts, if any have changed.

        Raises:
            MemoryFault: the kernel's count of changes cannot be read.
        """
        sequence = self._paths.changes()[1]
        if sequence != self._sequence:
            self._sequence, self._looks_left = sequence, _LOOKS
        if not self._looks_left:
            return
        try:
            walk, last = self._look()
        except (MemoryFault, WalkFailed) as error:
            sink.gaps("mounts", [Gap("mnt_namespace", None, str(error))])
            return
        self._looks_left -= 1
        sink.gaps("mounts", walk.gaps)
        changes = self._tell(walk, sink)
        if last is not None and self._last is not None and last - self._last > changes:
            count = last - self._last - changes
            sink.put(Missed(sink.after, sink.label(), What.MOUNT_CHANGES, count))
        self._last = last if last is not None else self._last

    def _look(self) -> tuple[ListWalk[Mount], int | None]:
        """This lists the mounts, and gives the number of the last change among them.

        Where mounts change all the time, the number may be of a moment before.
        """
        for _ in range(_TRIES):
            sequence = self._paths.changes()[1]
            processes = self._tasks.processes()
            last = self._mounts.last_change(processes.rows.values())
            walk = self._mounts.of_all(processes.rows.values(), Effort(_STEPS))
            if not sequence & 1 and self._paths.changes()[1] == sequence:
                break
        # A process that is not seen may be the only one in its namespace.
        walk.gaps[:0] = processes.gaps
        return walk, last

    def _tell(self, walk: ListWalk[Mount], sink: EventSink) -> int:
        """This tells of what has changed, and gives how much that is."""
        came, gone = self._known.take(_by_identity(walk), is_whole=not walk.gaps)
        for mount in gone if self._wants_unmount else ():
            sink.put(Unmounted(sink.after, sink.label(), mount))
        for mount in came if self._wants_mount else ():
            sink.put(Mounted(sink.after, sink.label(), mount))
        return len(came) + len(gone)


def _by_identity(walk: ListWalk[Mount]) -> dict[_Key, Mount]:
    return {(row.address, row.id, row.path, row.device): row for row in walk.rows.values()}
