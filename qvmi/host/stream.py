"""Connects to a Unix socket or TCP port, and says why where that cannot be.

References: unix(7), connect(2).
"""

import asyncio
import errno
import os
import socket
import stat
from pathlib import Path
from typing import Final

from qvmi.errors import SocketUnreachable
from qvmi.host.address import SocketAddress, TcpAddress, UnixAddress
from qvmi.host.peer import tcp_is_listening

__all__ = ["no_answer", "open_stream", "unreachable"]

# The kernel has no event for a free place in a Unix socket's queue; connect(2) fails with EAGAIN.
_RETRY_S: Final = 0.02


async def open_stream(address: SocketAddress, *, deadline: float) -> socket.socket:
    """This connects.

    Args:
        address: where to.
        deadline: the latest moment, in the event loop's time.

    Returns:
        A connection that does not block.

    Raises:
        SocketUnreachable: nobody listens, or the socket may not be opened.
        TimeoutError: the connection was neither made nor refused; `no_answer` tells more.
    """
    if isinstance(address, UnixAddress):
        return await _connect_unix(address, deadline)
    return await _connect_tcp(address, deadline)


async def _connect_unix(address: UnixAddress, deadline: float) -> socket.socket:
    loop = asyncio.get_running_loop()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(0)
    connected = False
    try:
        # asyncio's sock_connect takes EAGAIN for "under way", which a Unix socket never is.
        while not (connected := _connect_now(connection, address.path)):
            if loop.time() > deadline:
                break
            await asyncio.sleep(_RETRY_S)
    except OSError as error:
        raise unreachable(address, error) from error
    finally:
        if not connected:
            connection.close()
    if not connected:
        raise TimeoutError
    return connection


def _connect_now(connection: socket.socket, path: str) -> bool:
    try:
        connection.connect(path)
    except BlockingIOError:
        return False
    return True


async def _connect_tcp(address: TcpAddress, deadline: float) -> socket.socket:
    loop = asyncio.get_running_loop()
    failure: OSError | None = None
    try:
        async with asyncio.timeout_at(deadline):
            places = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
            for family, _, _, _, place in places:
                connection = socket.socket(family, socket.SOCK_STREAM)
                connection.settimeout(0)
                try:
                    await loop.sock_connect(connection, place)
                except OSError as error:
                    connection.close()
                    failure = error
                except BaseException:
                    connection.close()
                    raise
                else:
                    return connection
    except TimeoutError:
        raise
    except OSError as error:
        failure = error
    raise unreachable(address, failure or OSError("no such host")) from failure


def no_answer(address: SocketAddress) -> SocketUnreachable | None:
    """This tells whether a host that was silent is at fault; None: a queue of clients is full."""
    if isinstance(address, TcpAddress) and not tcp_is_listening(address.port):
        reason = "no answer; the host is down, or a firewall drops the packets"
        return SocketUnreachable(str(address), reason)
    return None


def unreachable(address: SocketAddress, error: OSError) -> SocketUnreachable:
    """This says why nothing could be connected to."""
    if isinstance(address, UnixAddress):
        return SocketUnreachable(str(address), _no_socket(Path(address.path), error))
    hint = "; nobody listens on that port" if error.errno == errno.ECONNREFUSED else ""
    return SocketUnreachable(str(address), (error.strerror or str(error)) + hint)


def _no_socket(path: Path, error: OSError) -> str:
    if error.errno == errno.ENOENT:
        folder = path.parent
        there = "its folder exists" if folder.is_dir() else f"there is no folder {folder} either"
        return f"no such socket ({there}); is QEMU running?"
    try:
        status = path.stat()
    except OSError:
        return f"{error.strerror}; a folder on the way to it is closed to uid {os.geteuid()}"
    if not stat.S_ISSOCK(status.st_mode):
        return f"is no socket but {_sort(status.st_mode)}"
    if error.errno == errno.EACCES:
        owner = f"uid {status.st_uid}, mode {stat.S_IMODE(status.st_mode):o}"
        return f"{error.strerror}: it belongs to {owner}, and we are uid {os.geteuid()}"
    if error.errno == errno.ECONNREFUSED:
        return "nobody listens any more; the QEMU that made it has ended"
    return error.strerror or str(error)


def _sort(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a file" if stat.S_ISREG(mode) else "a device or pipe"
