"""Where a socket of QEMU's is reached, as a value that has been checked."""

import os
import re
from dataclasses import dataclass
from typing import Final

from qvmi.errors import UsageError

__all__ = [
    "SOCKET_FORMS",
    "SocketAddress",
    "TcpAddress",
    "UnixAddress",
    "parse_socket_address",
    "parse_tcp",
    "parse_unix",
]

SOCKET_FORMS: Final = "PATH, unix:PATH, HOST:PORT, tcp:HOST:PORT, [IPV6]:PORT"
"""The forms that `parse_socket_address` reads, for people."""

# sockaddr_un.sun_path holds 108 bytes with the closing NUL, unix(7).
_MAX_UNIX_PATH: Final = 107


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """This is a Unix socket that QEMU listens on, as with ``-qmp unix:PATH,server=on,wait=off``."""

    path: str

    def __post_init__(self) -> None:
        encoded = os.fsencode(self.path)
        if not encoded or b"\0" in encoded:
            raise UsageError(f"{self.path!r}: no path of a socket; give one of {SOCKET_FORMS}")
        if len(encoded) > _MAX_UNIX_PATH:
            raise UsageError(
                f"{self.path}: {len(encoded)} bytes, but the path of a Unix socket holds"
                f" {_MAX_UNIX_PATH}; use a shorter or relative one"
            )

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """This is a TCP port that QEMU listens on, as with ``-qmp tcp:HOST:PORT,server=on,wait=off``."""

    host: str
    port: int

    def __post_init__(self) -> None:
        if not 0 < self.port < 1 << 16:
            raise UsageError(f"{self.host}:{self.port}: a port is between 1 and 65535")

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


SocketAddress = UnixAddress | TcpAddress
"""A socket of either family; `parse_socket_address` reads one, ``str`` writes it."""

_TCP: Final = re.compile(r"(?:\[(?P<ipv6>[^\]/]+)\]|(?P<host>[^:/\[\]]*)):(?P<port>[0-9]{1,9})")
# `::1:4444` could be a host and a port, or one host.
_BARE_IPV6: Final = re.compile(r"[0-9a-fA-F:]*:[0-9a-fA-F:]*:[0-9a-fA-F]*")
_QEMU_OPTION: Final = re.compile(r",(?:server|nowait|wait|path|host|port|ipv[46]|reconnect)\b")


def parse_socket_address(text: str | os.PathLike[str]) -> SocketAddress:
    """This reads the address of a socket in any of its forms.

    What has a slash in it is a path; what looks like a host and a port is one, so a socket
    in the current folder that is named like that is written ``./name:1`` or ``unix:name:1``.

    Raises:
        UsageError: it has none of the forms; the message says what was probably meant.
    """
    if isinstance(text, os.PathLike):
        return UnixAddress(os.fspath(text))
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "unix":
        return parse_unix(rest)
    if colon and scheme == "tcp":
        return parse_tcp(rest)
    if "/" not in text and (_TCP.fullmatch(text) or _BARE_IPV6.fullmatch(text)):
        return parse_tcp(text)
    return parse_unix(text)


def parse_unix(path: str) -> UnixAddress:
    """This reads a path.

    Raises:
        UsageError: it can be none, or has QEMU's options behind it.
    """
    option = _QEMU_OPTION.search(path)
    if option:
        raise UsageError(
            f"{path}: QEMU's options are not part of the address; give {path[: option.start()]}"
        )
    return UnixAddress(path)


def parse_tcp(place: str) -> TcpAddress:
    """This reads a host and a port.

    Raises:
        UsageError: it is not that, or has QEMU's options behind it.
    """
    option = _QEMU_OPTION.search(place)
    if option:
        raise UsageError(
            f"{place}: QEMU's options are not part of the address; give {place[: option.start()]}"
        )
    match = _TCP.fullmatch(place)
    if match is None:
        hint = "; an IPv6 host needs brackets: [HOST]:PORT" if place.count(":") > 1 else ""
        raise UsageError(f"{place}: no HOST:PORT{hint}")
    # QEMU's own `tcp::4444` listens on every interface; from here that is this host.
    return TcpAddress(match["ipv6"] or match["host"] or "localhost", int(match["port"]))
