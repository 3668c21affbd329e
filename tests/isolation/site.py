"""A bus network with its owner in a stand-in host, a service VM on it, and listeners that tell who came."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import Popen
from typing import Any, Final

from tests.guests.lab import Lab
from tests.guests.pool import GuestPool
from tests.isolation.held_process import held, line_of, stream
from tests.isolation.namespaces import Inside
from tests.isolation.user_vm import NetworkGuest, Target, network_guest

__all__ = ["Site", "bus_site", "canary", "lab_within", "owner"]

CANARY: Final = str(Path(__file__).with_name("canary.py"))
BUS_MAC: Final = "52:54:00:77:00:01"


def lab_within(lab: Lab, where: Inside) -> Lab:
    """This is a lab whose guests' QEMUs live in another namespace."""
    return replace(lab, qemu=replace(lab.qemu, within=where.enter))


@contextmanager
def owner(host: Inside, *arguments: str) -> Iterator[tuple[Popen[bytes], dict[str, Any]]]:
    """This runs `tests.isolation.owner` in a stand-in host, and is it and what it tells."""
    command = (*host.enter, sys.executable, "-m", "tests.isolation.owner", *arguments)
    with held(*command) as process:
        told: dict[str, Any] = json.loads(line_of(process))
        yield process, told


class Canary:
    """This is a listener that tells who came."""

    def __init__(self, process: Popen[bytes]) -> None:
        self._process = process

    def came(self) -> list[str]:
        """This ends it, and is all that came."""
        stream(self._process.stdin).close()
        return stream(self._process.stdout).read().decode().splitlines()


@contextmanager
def canary(where: Inside, address: str, port: int) -> Iterator[Canary]:
    """This listens on TCP and UDP while the block lasts."""
    with held(*where.enter, "python3", "-I", "-S", CANARY, address, str(port)) as process:
        assert line_of(process) == "ready"
        yield Canary(process)


@dataclass(frozen=True, slots=True)
class Site:
    """This is what a user VM might reach.

    Attributes:
        host: the stand-in for the host; `bus` the namespace that the broker is in.
        told: what the owner said.
        service: the service VM.
    """

    host: Inside
    bus: Inside
    told: dict[str, Any]
    service: NetworkGuest

    @property
    def bridge(self) -> str:
        return str(self.told["bridge"])

    @property
    def tap(self) -> str:
        """This is the interface that the service VM is plugged into."""
        found = dict(
            part.partition("=")[::2] for part in self.told["seats"][0]["netdev"].split(",")
        )
        return str(found["ifname"])

    @property
    def targets(self) -> tuple[Target, Target]:
        """These are the broker and the service VM, by their addresses on the bus."""
        seat = self.told["seats"][0]
        return Target(seat["broker"], BUS_MAC), Target(seat["address"], seat["mac"])


@contextmanager
def bus_site(lab: Lab, pool: GuestPool, host: Inside, way: str) -> Iterator[Site]:
    """This sets all of it up."""
    with owner(host, way, "site") as (_, told):
        bus = Inside(told["broker"])
        seat = told["seats"][0]
        service = network_guest(GuestPool(lab_within(lab, bus), pool.stack))
        with service.plugged(seat["netdev"], seat["mac"]):
            service.shell("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6")
            service.configure(f"{seat['address']}/24")
            yield Site(host, bus, told, service)
