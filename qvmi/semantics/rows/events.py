"""Rows about what happens in a guest: processes, modules, sockets and mounts that come and go."""

from collections.abc import Iterable
from enum import StrEnum

import msgspec

from qvmi.addr import Va
from qvmi.errors import UsageError
from qvmi.semantics.rows.files import Mount
from qvmi.semantics.rows.modules import Module
from qvmi.semantics.rows.processes import Process
from qvmi.semantics.rows.sockets import Socket
from qvmi.view import Provenance

__all__ = [
    "PROCESS_KINDS",
    "EventKind",
    "GuestChanged",
    "GuestEvent",
    "Missed",
    "ModuleLoaded",
    "ModuleUnloaded",
    "Mounted",
    "NotSeen",
    "ProcessExeced",
    "ProcessExited",
    "ProcessStarted",
    "SocketListening",
    "Unmounted",
    "What",
    "kinds_named",
]


class EventKind(StrEnum):
    """This is what can be waited for; each is the ``kind`` of the rows that tell of it."""

    STARTED = "started"
    EXECED = "execed"
    EXITED = "exited"
    LOADED = "loaded"
    UNLOADED = "unloaded"
    LISTENING = "listening"
    MOUNTED = "mounted"
    UNMOUNTED = "unmounted"


PROCESS_KINDS = frozenset({EventKind.STARTED, EventKind.EXECED, EventKind.EXITED})
"""Those of processes."""


def kinds_named(names: Iterable[str] | None) -> frozenset[EventKind]:
    """These are the kinds of these names, all for None.

    Raises:
        UsageError: there is no such kind.
    """
    if names is None:
        return frozenset(EventKind)
    try:
        return frozenset(map(EventKind, names))
    except ValueError as error:
        raise UsageError(f"{error}: kinds of events are {', '.join(EventKind)}") from error


class GuestEvent(msgspec.Struct, frozen=True, gc=False, tag_field="kind"):
    """This is one thing that happened, or what is to be said of the watching itself.

    Args:
        after: when this was looked at the last time before, seconds since the Unix epoch on the host's
            clock: it happened between then and ``provenance.at``.
        provenance: how and when it was seen.
    """

    after: float
    provenance: Provenance


class ProcessStarted(GuestEvent, frozen=True, gc=False, tag="started"):
    """This is a process that was forked.

    Args:
        process: as it was first seen. Until it execs it has its parent's name.
    """

    process: Process


class ProcessExeced(GuestEvent, frozen=True, gc=False, tag="execed"):
    """This is a process that runs another program now.

    Args:
        process: as it is now.
        was: its name before; None where that is not known, by a breakpoint.
        count: how many programs it began since it was last looked at, as the kernel counts them
            (``task_struct.self_exec_id``); only the last one is known.
    """

    process: Process
    was: str | None
    count: int


class ProcessExited(GuestEvent, frozen=True, gc=False, tag="exited"):
    """This is a process whose last thread has ended, whether its parent has asked for it or not.

    Args:
        process: as it was last seen.
        status: as wait(2) gives it; None where it was gone before it could be read.
    """

    process: Process
    status: int | None


class ModuleLoaded(GuestEvent, frozen=True, gc=False, tag="loaded"):
    """This is a kernel module that the list of modules has now; it may be ``coming`` still."""

    module: Module


class ModuleUnloaded(GuestEvent, frozen=True, gc=False, tag="unloaded"):
    """This is a kernel module that the list of modules has no more."""

    module: Module


class SocketListening(GuestEvent, frozen=True, gc=False, tag="listening"):
    """This is a TCP or Unix socket that listens now; nobody asks who has it open."""

    socket: Socket


class Mounted(GuestEvent, frozen=True, gc=False, tag="mounted"):
    """This is a mount that a namespace has now; one that was moved is unmounted and mounted."""

    mount: Mount


class Unmounted(GuestEvent, frozen=True, gc=False, tag="unmounted"):
    """This is a mount that a namespace has no more."""

    mount: Mount


class What(StrEnum):
    """This is what was missed."""

    FORKS = "forks"
    """Processes and threads, by ``total_forks``."""
    EXECS = "execs"
    """Programs begun by processes that were missed: nobody counts them."""
    MOUNT_CHANGES = "mount changes"
    """By ``mnt_namespace.event``, which counts remounts and moves too."""
    EVENTS = "events"
    """Events that were seen, and dropped because nobody took them in time."""


class Missed(GuestEvent, frozen=True, gc=False, tag="missed"):
    """This says that something happened which no event tells of.

    Args:
        what: of which kind.
        count: how many since this was last said; None where that is unknown.
    """

    what: What
    count: int | None


class NotSeen(GuestEvent, frozen=True, gc=False, tag="gap"):
    """This is a part of the guest that cannot be looked at; it is told once for as long as it lasts.

    Args:
        structure: what was walked, such as ``task_struct.tasks``.
        address: where the walk stood, None where there is none.
        reason: what was wrong.
    """

    structure: str
    address: Va | None
    reason: str


class GuestChanged(GuestEvent, frozen=True, gc=False, tag="changed"):
    """This says that another guest is watched from now on: it was reset, or another kernel runs.

    Nothing is known of what happened between ``after`` and ``provenance.at``; what runs by then is not
    told as started.

    Args:
        release: of the kernel that runs now; empty as long as none is recognised.
    """

    release: str
