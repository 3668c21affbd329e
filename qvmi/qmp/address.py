"""Where a QMP monitor is reached: at a socket of QEMU's own, or through libvirt."""

import os
from dataclasses import dataclass
from typing import Final

from qvmi.errors import UsageError
from qvmi.host.address import TcpAddress, UnixAddress, parse_socket_address

__all__ = ["Address", "LibvirtAddress", "parse_address"]

_LIBVIRT: Final = "libvirt:"


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
        return f"{_LIBVIRT}{self.uri}/{self.domain}" if self.uri else f"{_LIBVIRT}{self.domain}"


Address = UnixAddress | TcpAddress | LibvirtAddress
"""Every way to a monitor; `parse_address` reads one, ``str`` writes it."""


def parse_address(text: str | os.PathLike[str]) -> Address:
    """This reads an address: ``libvirt:[URI/]DOMAIN``, or what `parse_socket_address` reads.

    Raises:
        UsageError: it has none of the forms; the message says what was probably meant.
    """
    if isinstance(text, str) and text.startswith(_LIBVIRT):
        uri, _, domain = text.removeprefix(_LIBVIRT).rpartition("/")
        return LibvirtAddress(domain, uri or None)
    return parse_socket_address(text)
