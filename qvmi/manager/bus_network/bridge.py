"""What the bridge of a bus network is made of, as words for ip(8) and bridge(8).

Service VMs are a star around the broker: an isolated port reaches the bridge itself and no other port. A port
takes frames from its own VM's address alone, and learns nothing; who has which address is written down
beforehand, so that no VM can take another's place.

References: ip-link(8), ``bridge_slave``; bridge(8), ``locked``; ip-neighbour(8);
Documentation/networking/ip-sysctl.rst.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["BRIDGE", "MAX_SEATS", "SUBNET", "Bridge", "Port", "quiet_script"]

BRIDGE: Final = "qvmi0"
"""The bridge in a namespace of its own, where nobody else's name is in the way."""

SUBNET: Final = ipaddress.IPv4Network("10.77.0.0/24")
"""Its addresses; in a namespace of its own they meet no others."""

MARK: Final = "qvmi bus network"
"""The bridge's alias, which tells ``holder.py`` that it is ours to remove."""

MAX_SEATS: Final = 250
"""Service VMs on one bus: those that a /24 has addresses for beside the broker."""

_FIRST_SEAT: Final = 2
"""The broker has the first address."""

_MAC_PREFIX: Final = "52:54:00:77:00"
"""QEMU's prefix; the last byte is the address's. A bridge without one changes it with its ports."""

_SETTINGS: Final[Mapping[str, int]] = {
    "ipv6/conf/all/disable_ipv6": 1,
    "ipv6/conf/default/disable_ipv6": 1,
    "ipv4/ip_forward": 0,
    "ipv4/conf/all/accept_redirects": 0,
    "ipv4/conf/default/accept_redirects": 0,
    "ipv4/conf/all/accept_source_route": 0,
    "ipv4/conf/all/proxy_arp": 0,
    "ipv4/conf/all/route_localnet": 0,
    "ipv4/conf/all/rp_filter": 1,
    "ipv4/conf/default/rp_filter": 1,
}
"""Below /proc/sys/net. A new namespace inherits most of IPv4's from the host, forwarding among them."""


@dataclass(frozen=True, slots=True)
class Port:
    """This is where a service VM is plugged in.

    Attributes:
        tap: the name of its interface.
        mac: the one address its VM sends from.
        address: the VM's IPv4 address.
    """

    tap: str
    mac: str
    address: str


@dataclass(frozen=True, slots=True)
class Bridge:
    """This is a bridge by its name and addresses."""

    name: str = BRIDGE
    subnet: ipaddress.IPv4Network = SUBNET

    @property
    def address(self) -> str:
        """This is the broker's address on it."""
        return str(self.subnet[1])

    @property
    def words(self) -> str:
        """These are the lines for ``ip -batch`` that make it."""
        lines = (
            f"link add name {self.name} address {_MAC_PREFIX}:01 type bridge stp_state 0 mcast_snooping 0",
            f"link set dev {self.name} addrgenmode none alias '{MARK}'",
            f"address add {self.address}/{self.subnet.prefixlen} dev {self.name}",
            f"link set dev {self.name} up",
        )
        return "\n".join(lines) + "\n"

    def port(self, number: int) -> Port:
        """This is the port of that number, below `MAX_SEATS`."""
        host = _FIRST_SEAT + number
        tap = f"tap{number}" if self.name == BRIDGE else f"{self.name}t{number}"
        return Port(tap, f"{_MAC_PREFIX}:{host:02x}", str(self.subnet[host]))

    def port_words(self, port: Port) -> str:
        """These are the lines for ``ip -batch`` that add a port."""
        flags = "isolated on learning off flood off mcast_flood off bcast_flood off locked on"
        lines = (
            f"tuntap add dev {port.tap} mode tap",
            f"link set dev {port.tap} addrgenmode none master {self.name}",
            f"link set dev {port.tap} type bridge_slave {flags}",
            f"neighbour replace {port.address} lladdr {port.mac} nud permanent dev {self.name}",
            f"link set dev {port.tap} up",
        )
        return "\n".join(lines) + "\n"

    def address_words(self, port: Port) -> str:
        """This is the line for ``bridge -batch`` that ties a VM's address to its port.

        Without ``sticky`` a frame from another port that learns would take it there.
        """
        return f"fdb replace {port.mac} dev {port.tap} master static sticky\n"


def quiet_script() -> str:
    """This is a shell script that switches off, in the namespace it runs in, all that a bus does not need."""
    lines = ["set -e", "cd /proc/sys/net"]
    for name, value in _SETTINGS.items():
        # A kernel without IPv6 has none of its settings, and nothing to switch off.
        lines.append(
            f'if [ -e {name} ]; then echo {value} > {name}; [ "$(cat {name})" = {value} ]; fi'
        )
    lines.append(
        "ip link set dev lo up"
    )  # the broker speaks to itself when it is asked whether it listens
    return "\n".join(lines) + "\n"
