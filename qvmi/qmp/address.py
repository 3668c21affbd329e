"""Where a QMP monitor is reached, as a value that has been checked."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from qvmi.errors import UsageError

__all__ = ["Address", "LibvirtAddress", "TcpAddress", "UnixAddress", "parse_address"]

_FORMS: Final = "PATH, unix:PATH, HOST:PORT, tcp:HOST:PORT, [IPV6]:PORT, libvirt:[URI/]DOMAIN"

# sockaddr_un.sun_path holds 108 bytes with the closing NUL, unix(7).
_MAX_UNIX_PATH: Final = 107


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """This is a Unix socket that QEMU listens on, as with ``-qmp unix:PATH,server=on,wait=off``."""

    path: str

    def __post_init__(self) -> None:
        encoded = os.fsencode(self.path)
        if not encoded or b"\0" in encoded:
            raise UsageError(f"{self.path!r}: no path of a socket; give one of {_FORMS}")
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


@dataclass(frozen=True, slots=True)
class LibvirtAddress:
    """This is a domain whose monitor libvirt holds.

    Args:
        domain: its name, UUID or id, as ``virsh`` takes it.
        uri: libvirt's connection URI, such as ``qemu:///system``; None for virsh's default.
    """

    domain: str
    uri: str | None = None

    def __post_init__(self) -> None:
        if not self.domain or "\0" in self.domain:
            raise UsageError(f"{self}: no domain named; give libvirt:DOMAIN or libvirt:URI/DOMAIN")

    def __str__(self) -> str:
        return f"libvirt:{self.uri}/{self.domain}" if self.uri else f"libvirt:{self.domain}"


Address = UnixAddress | TcpAddress | LibvirtAddress
"""Every way to a monitor; `parse_address` reads one, ``str`` writes it."""

_TCP: Final = re.compile(r"(?:\[(?P<ipv6>[^\]/]+)\]|(?P<host>[^:/\[\]]*)):(?P<port>[0-9]{1,9})")
# `::1:4444` could be a host and a port, or one host.
_BARE_IPV6: Final = re.compile(r"[0-9a-fA-F:]*:[0-9a-fA-F:]*:[0-9a-fA-F]*")
_QEMU_OPTION: Final = re.compile(r",(?:server|nowait|wait|path|host|port|ipv[46]|reconnect)\b")


def parse_address(text: str | os.PathLike[str]) -> Address:
    """This reads an address in any of its forms.

    What has a slash in it is a path; what looks like a host and a port is one, so a socket
    in the current folder that is named like that is written ``./name:1`` or ``unix:name:1``.

    Raises:
        UsageError: it has none of the forms; the message says what was probably meant.
    """
    if isinstance(text, os.PathLike):
        return UnixAddress(os.fspath(text))
    scheme, colon, rest = text.partition(":")
    if colon and scheme in _SCHEMES:
        return _SCHEMES[scheme](rest)
    if "/" in text:
        return _unix(text)
    if _TCP.fullmatch(text) or _BARE_IPV6.fullmatch(text):
        return _tcp(text)
    return _unix(text)


def _unix(path: str) -> UnixAddress:
    option = _QEMU_OPTION.search(path)
    if option:
        raise UsageError(
            f"{path}: QEMU's options are not part of the address; give {path[: option.start()]}"
        )
    return UnixAddress(path)


def _tcp(place: str) -> TcpAddress:
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


def _libvirt(place: str) -> LibvirtAddress:
    uri, _, domain = place.rpartition("/")
    return LibvirtAddress(domain, uri or None)


_SCHEMES: Final[Mapping[str, Callable[[str], Address]]] = {
    "unix": _unix,
    "tcp": _tcp,
    "libvirt": _libvirt,
}
