"""A QMP session with one QEMU over its own socket."""

import asyncio
import os
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, Self

from qemu.qmp import QMPError, Runstate

from qvmi.errors import (
    MachineGone,
    NotQmp,
    QmpProtocolError,
    QmpTimeout,
    QvmiError,
    UsageError,
)
from qvmi.host.address import TcpAddress, UnixAddress
from qvmi.host.peer import look_at_peer, peer_pid
from qvmi.qmp.address import LibvirtAddress, parse_address
from qvmi.qmp.client import Client, Reply, result_of
from qvmi.qmp.connection import open_connection
from qvmi.qmp.events import RUN_STATE_EVENTS, EventStream, decode_event
from qvmi.qmp.monitor import (
    ANSWER_TIMEOUT_S,
    CONNECT_TIMEOUT_S,
    NO_ARGUMENTS,
    Monitor,
    QemuVersion,
    parse_version,
)

__all__ = ["QmpSession"]

# The reader needs a turn of the event loop to see that the socket was shut down.
_CLOSE_TIMEOUT_S: Final = 1.0


class QmpSession(Monitor):
    """This is a conversation over a socket of QEMU's own; only `connect` makes one.

    A socket serves one client at a time: while this is open, others wait.
    """

    def __init__(
        self, target: str, connection: socket.socket, client: Client, version: QemuVersion
    ) -> None:
        self._target = target
        self._connection = connection
        self._client = client
        self._version = version
        self._streams: list[EventStream] = []
        self._counts = Counter[str]()
        self._ending: Callable[[str], QvmiError] | None = None
        self._client.start(self._take_event)
        self._watcher = asyncio.create_task(self._watch(), name=f"QMP session {target}")

    @classmethod
    async def connect(
        cls,
        address: str | os.PathLike[str] | UnixAddress | TcpAddress,
        *,
        timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> Self:
        """This opens a session.

        Raises:
            UsageError: the address has none of the documented forms.
            SocketUnreachable: nobody listens there, or the socket may not be opened.
            NotQmp: what listens there is no QMP.
            QmpBusy: another client is being served.
        """
        place = parse_address(address) if isinstance(address, str | os.PathLike) else address
        if isinstance(place, LibvirtAddress):
            raise UsageError(f"{place}: libvirt holds this machine's socket; use LibvirtSession")
        deadline = asyncio.get_running_loop().time() + timeout_s
        connection = await open_connection(place, timeout_s=timeout_s)
        client = Client()
        try:
            version = await _greet(str(place), connection, client, deadline)
        except BaseException:
            connection.close()
            raise
        return cls(str(place), connection, client, version)

    @property
    def target(self) -> str:
        """This is the address, as errors name it."""
        return self._target

    @property
    def version(self) -> QemuVersion:
        """This is QEMU's release, from its greeting."""
        return self._version

    @property
    def ended(self) -> bool:
        """This tells whether the session is over, as far as the event loop has seen."""
        return self._ending is not None

    @property
    def descriptor(self) -> int:
        """This is the socket's; a duplicate keeps QEMU talking to whoever holds it."""
        return self._connection.fileno()

    @property
    def run_state_events(self) -> Mapping[str, int]:
        """This counts the `RUN_STATE_EVENTS` of this session."""
        return {name: self._counts[name] for name in RUN_STATE_EVENTS}

    def peer_pid(self) -> int | None:
        """This is the process that listens at the other end; None where it cannot be known.

        Where the descriptor was handed to QEMU, this is the process that made it. For TCP it takes
        a search through ``/proc`` (some 10 ms), and finds processes of this host alone.
        """
        if self._connection.family == socket.AF_UNIX:
            return peer_pid(self._connection)
        server = look_at_peer(self._connection).server
        return server.pid if server else None

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] = NO_ARGUMENTS,
        *,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> object:
        """This runs a QMP command, as `Monitor.execute` says."""
        try:
            async with asyncio.timeout(timeout_s):
                reply = await self._client.ask(command, arguments)
        except TimeoutError as error:
            raise QmpTimeout(command, timeout_s) from error
        except TypeError as error:
            raise UsageError(f"{command}: arguments that JSON cannot hold: {error}") from error
        if reply is None:
            raise self._end_while(command)
        return result_of(command, reply)

    def events(self) -> EventStream:
        """This opens a stream of the events from now on.

        Its end is MachineGone or QmpProtocolError, as for a command; after `close` it just ends.
        """
        if self._ending is not None:
            raise self._ending("events")
        stream = EventStream(self._streams.remove)
        self._streams.append(stream)
        return stream

    async def close(self, *, keep_open: bool = False) -> None:
        """This ends the session; the machine is left as it is."""
        if self._ending is None:
            self._ending = lambda doing: UsageError(f"{doing}: {self._target} was closed")
        if keep_open:
            self._client.let_go()
        else:
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
        await asyncio.wait({self._watcher}, timeout=_CLOSE_TIMEOUT_S)
        self._watcher.cancel()

    def _take_event(self, reply: Reply) -> None:
        event = decode_event(reply.event or "", reply.data, reply.at)
        if event.name in RUN_STATE_EVENTS:
            self._counts[event.name] += 1
        for stream in self._streams:
            stream.put(event)

    async def _watch(self) -> None:
        """This waits for the end of the session, and tells everyone who waits for something."""
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()
        ending = await self._cause()
        closed_by_us = self._ending is not None
        self._ending = self._ending or ending
        self._client.abandon()
        for stream in self._streams:
            stream.end(None if closed_by_us else ending("events"))

    async def _cause(self) -> Callable[[str], QvmiError]:
        try:
            await self._client.disconnect()
        except QMPError as error:
            problem = _first_line(error)
            return lambda doing: QmpProtocolError(doing, problem)
        except (EOFError, OSError):
            return MachineGone
        return MachineGone

    def _end_while(self, doing: str) -> QvmiError:
        return self._ending(doing) if self._ending else MachineGone(doing)


async def _greet(
    target: str, connection: socket.socket, client: Client, deadline: float
) -> QemuVersion:
    try:
        async with asyncio.timeout_at(deadline):
            await client.connect(connection)
    except AssertionError:
        # qemu.qmp's own, that the session it has begun goes on. A QEMU that ends right behind its
        # greeting ends the session in that very turn of the event loop: whoever asks first is told.
        if client.runstate is not Runstate.DISCONNECTING:
            raise
    except TimeoutError as error:
        raise NotQmp(target, "began a greeting, and did not end it in time") from error
    except QMPError as error:
        raise NotQmp(target, f"no QMP greeting: {_first_line(error)}") from error
    try:
        return parse_version(client.greeting.QMP.version if client.greeting else None)
    except QmpProtocolError as error:
        connection.shutdown(socket.SHUT_RDWR)
        with suppress(QMPError, EOFError, OSError):
            await client.disconnect()
        raise NotQmp(target, f"no QMP greeting: {error.problem}") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
