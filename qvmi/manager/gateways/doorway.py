"""The socket of a gateway, and who may come in by it.

References: unix(7) (SO_PEERCRED; that who may connect is who may write to the socket's file).

Who is let in runs as the user that the gateway runs as, root not excepted where that is somebody else: a
gateway has no other way to know whom it serves, and lends what its own user may do anyway.
"""

import asyncio
import logging
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qvmi.audit import LOGGER
from qvmi.errors import QvmiError, UsageError
from qvmi.host.address import UnixAddress
from qvmi.host.host_process import host_process

__all__ = ["MAX_VISITORS", "Serve", "Visitor", "listening", "receive"]

MAX_VISITORS: Final = 16
"""Clients of one gateway at a time: more than anybody has windows open, and each costs a task or two."""

_QUEUE: Final = 128
"""Clients that wait to be let in; each waits for a turn of the event loop."""
_MOST_NAME: Final = 64
"""Letters of a client's name; the kernel itself keeps 15, and a command line may have two million."""
_PRIVATE: Final = 0o600
_OTHERS_MAY_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_ACCEPT_AGAIN_S: Final = 0.1
"""When there are no descriptors left, some may be free a moment later."""
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid

_log: Final = logging.getLogger(__name__)
_audit: Final = logging.getLogger(LOGGER)


@dataclass(frozen=True, slots=True)
class Visitor:
    """This is a client, as the kernel tells of it when it comes.

    Args:
        gateway: the one that it has come by.
        number: counts those that have come by it.
        pid: its process.
        uid: whom it runs as.
        program: the name that it had then, fit to be shown: a process is called what it likes.
    """

    gateway: str
    number: int
    pid: int
    uid: int
    program: str = ""

    def __str__(self) -> str:
        process = f"{self.program} (pid {self.pid})" if self.program else f"process {self.pid}"
        return f"{self.gateway} client {self.number}, {process}"


Serve = Callable[[socket.socket, Visitor], Awaitable[None]]
"""Serves one client until it has gone; the connection is closed behind it."""


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """This listens on a path for as long as the block lasts.

    Raises:
        UsageError: others could put a socket of their own in its place, or there is something else.
    """
    address = UnixAddress(os.fspath(path))
    _require_private(path.parent)
    _remove_stale(path)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with server:
        before = os.umask(0o777 & ~_PRIVATE)
        try:
            server.bind(address.path)
        except OSError as error:
            raise UsageError(f"cannot listen on {path}: {error.strerror or error}") from error
        finally:
            os.umask(before)
        made = path.lstat()
        server.listen(_QUEUE)
        server.settimeout(0)
        try:
            yield server
        finally:
            _remove_own(path, made)


def _require_private(folder: Path) -> None:
    try:
        status = folder.stat()
    except OSError as error:
        raise UsageError(f"no folder {folder} for the socket: {error.strerror}") from error
    foreign = status.st_uid not in {0, os.geteuid()}
    if foreign or status.st_mode & _OTHERS_MAY_WRITE:
        why = "belongs to another user" if foreign else "may be written to by others"
        raise UsageError(
            f"the folder {folder} {why}, who could put a socket of their own in place of the"
            " gateway's; name one in a folder of yours, of mode 0700"
        )
    for above in folder.resolve().parents:
        mode = above.stat().st_mode
        if mode & _OTHERS_MAY_WRITE and not mode & stat.S_ISVTX:
            raise UsageError(
                f"the folder {above} may be written to by others, who could put a folder of their own"
                f" in place of {folder}; name one elsewhere"
            )


def _remove_stale(path: Path) -> None:
    """This removes what a gateway that was killed has left."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"cannot look at {path}: {error.strerror}") from error
    if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
        raise UsageError(f"{path} is there already, and is no socket of yours: choose another")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError:
            pass
    raise UsageError(f"somebody listens on {path} already")


def _remove_own(path: Path, made: os.stat_result) -> None:
    with suppress(OSError):
        status = path.lstat()
        if (status.st_dev, status.st_ino) == (made.st_dev, made.st_ino):
            path.unlink()


async def receive(server: socket.socket, gateway: str, serve: Serve) -> None:
    """This serves all who come and may come in, each in a task of its own; it never returns."""
    visits: set[asyncio.Task[None]] = set()
    number = 0
    try:
        while True:
            connection = await _accepted(server)
            number += 1
            if len(visits) >= MAX_VISITORS:
                _log.warning("%s: a client sent away, as %d are there", gateway, MAX_VISITORS)
                connection.close()
                continue
            visit = _visit(connection, gateway, number, serve)
            task = asyncio.create_task(visit, name=f"qvmi gateway {gateway}")
            visits.add(task)
            task.add_done_callback(visits.discard)
    finally:
        for task in visits:
            task.cancel()
        if visits:
            await asyncio.wait(visits)


async def _accepted(server: socket.socket) -> socket.socket:
    loop = asyncio.get_running_loop()
    while True:
        try:
            connection, _ = await loop.sock_accept(server)
        except OSError as error:
            _log.warning("no client can be taken in: %s", error.strerror)
            await asyncio.sleep(_ACCEPT_AGAIN_S)
        else:
            # Where the next one waits already, those who are served would get no turn.
            await asyncio.sleep(0)
            return connection


def _visitor(connection: socket.socket, gateway: str, number: int) -> Visitor:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    process = host_process(pid) if pid else None
    program = "" if process is None else process.program[:_MOST_NAME]
    shown = "".join(one if one.isascii() and one.isprintable() else "?" for one in program)
    return Visitor(gateway, number, pid, uid, shown)


async def _visit(connection: socket.socket, gateway: str, number: int, serve: Serve) -> None:
    with connection, suppress(OSError):
        visitor = _visitor(connection, gateway, number)
        uid = visitor.uid
        try:
            if uid != os.geteuid():
                _audit.warning("refused: %s of uid %d: not the gateway's own user", visitor, uid)
                return
            _audit.info("%s: comes", visitor)
            await serve(connection, visitor)
            _audit.info("%s: has gone", visitor)
        except QvmiError as error:
            _log.warning("%s: %s", visitor, error)
