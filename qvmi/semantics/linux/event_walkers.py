"""What watches a guest for events, put together of the walkers that know the structures."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from qvmi.semantics.linux.events.event_watch import EventPart, EventWatch
from qvmi.semantics.linux.events.listen_events import ListenEvents
from qvmi.semantics.linux.events.module_events import ModuleEvents
from qvmi.semantics.linux.events.mount_events import MountEvents
from qvmi.semantics.linux.events.new_tasks import NewTasks
from qvmi.semantics.linux.events.process_events import ProcessEvents
from qvmi.semantics.linux.fs.d_path import Paths
from qvmi.semantics.linux.fs.mount import Mounts
from qvmi.semantics.linux.kernel.discovery import Kernel
from qvmi.semantics.linux.modules.module import Modules
from qvmi.semantics.linux.net.socket_tables import SocketTables
from qvmi.semantics.linux.tasks.process_count import process_counter
from qvmi.semantics.linux.tasks.task import Tasks
from qvmi.semantics.linux.tasks.task_moments import TaskMoments
from qvmi.semantics.rows.events import PROCESS_KINDS, EventKind
from qvmi.view import View

__all__ = ["EventWalkers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventWalkers:
    """These are the walkers of one kernel that see events; some are made once they are wanted.

    Args:
        kernel: the kernel that runs there.
        tasks: its tasks.
        moments: gives what reads what has become of one of them.
        modules: gives what lists its modules.
        sockets: gives what lists its sockets.
        mounts: gives what lists its mounts.
        paths: gives what reads paths.
    """

    kernel: Kernel
    tasks: Tasks
    moments: Callable[[], TaskMoments]
    modules: Callable[[], Modules]
    sockets: Callable[[], SocketTables]
    mounts: Callable[[], Mounts]
    paths: Callable[[], Paths]

    def watch(
        self, view: View, kinds: Collection[EventKind], require_current: Callable[[], None]
    ) -> EventWatch:
        """This watches what happens from its beginning on.

        Args:
            view: how the guest is looked at.
            kinds: which events are wanted.
            require_current: raises where another kernel runs by now.

        Raises:
            SymbolsError: the profile lacks what this needs.
        """
        space, symbols, wants = self.kernel.space, self.kernel.symbols, kinds.__contains__
        parts: list[EventPart] = []
        forks: NewTasks | None = None
        if not PROCESS_KINDS.isdisjoint(kinds):
            forks = NewTasks(space, symbols, limit=self.tasks.limit)
            counted = process_counter(space, symbols)
            parts.append(ProcessEvents(forks, self.moments(), self.tasks, wants, counted))
        if wants(EventKind.LOADED) or wants(EventKind.UNLOADED):
            parts.append(ModuleEvents(space, symbols, self.modules(), wants))
        if wants(EventKind.LISTENING):
            parts.append(ListenEvents(space, symbols, self.sockets()))
        if wants(EventKind.MOUNTED) or wants(EventKind.UNMOUNTED):
            parts.append(MountEvents(self.mounts(), self.paths(), self.tasks, wants))
        return EventWatch(view, parts, require_current=require_current, forks=forks)
