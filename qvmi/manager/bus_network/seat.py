"""How a service VM's QEMU is started so that its guest reaches the bus and nothing else."""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import qvmi.bus.lifeline
from qvmi.manager.bus_network.bridge import Bridge, Port

__all__ = ["FORWARDED_ADDRESS", "Seat", "seat_by_forwarding", "seat_on_port"]

FORWARDED_ADDRESS: Final = "10.0.2.100"
"""Where a guest finds the broker that QEMU's user network forwards to; that network is 10.0.2.0/24."""

_FORWARDED_GUEST: Final = "10.0.2.15"
_FORWARDED_PREFIX: Final = 24
_FORWARDED_MAC: Final = "52:54:00:77:01:02"

_RELAY: Final = Path(__file__).with_name("relay.py")


@dataclass(frozen=True, slots=True)
class Seat:
    """This is a service VM's place on the bus.

    Attributes:
        netdev: the value of QEMU's ``-netdev``, whose id is ``bus``.
        mac: the address its card must have.
        address: the guest's own IPv4 address; `prefix` its network's length in bits.
        broker: the address that it finds the broker at; `port` likewise.
        enter: the command that QEMU must be run by.
    """

    netdev: str
    mac: str
    address: str
    prefix: int
    broker: str
    port: int
    enter: tuple[str, ...] = ()

    @property
    def arguments(self) -> tuple[str, ...]:
        """These are the arguments for QEMU that attach the guest."""
        return ("-netdev", self.netdev, "-device", f"virtio-net-pci,netdev=bus,mac={self.mac}")

    def command(self, *qemu: str) -> tuple[str, ...]:
        """This is the whole command line; QEMU ends when this program does.

        Args:
            qemu: the program by its full path, and its other arguments.
        """
        lifeline = (sys.executable, "-I", "-S", qvmi.bus.lifeline.__file__, str(os.getpid()))
        return (*self.enter, *lifeline, *qemu, *self.arguments)


def seat_on_port(bridge: Bridge, port: Port, listens_on: int, enter: tuple[str, ...]) -> Seat:
    """This is a place at a port of a bridge."""
    netdev = f"tap,id=bus,ifname={port.tap},script=no,downscript=no"
    prefix = bridge.subnet.prefixlen
    return Seat(netdev, port.mac, port.address, prefix, bridge.address, listens_on, enter)


def seat_by_forwarding(socket: Path, listens_on: int, number: int) -> Seat:
    """This is a place without a network: QEMU's own forwards one address and port to a Unix socket."""
    relay = shlex.join((sys.executable, "-I", "-S", str(_RELAY), str(socket), str(number)))
    forward = f"tcp:{FORWARDED_ADDRESS}:{listens_on}-cmd:{relay}".replace(",", ",,")
    netdev = f"user,id=bus,ipv6=off,restrict=on,guestfwd={forward}"
    address, prefix = _FORWARDED_GUEST, _FORWARDED_PREFIX
    return Seat(netdev, _FORWARDED_MAC, address, prefix, FORWARDED_ADDRESS, listens_on)
