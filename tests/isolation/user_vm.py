"""A guest on a network, whose root tries whom it can reach."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from tests.guests.lab import Guest, GuestConfig
from tests.guests.network_card import CARD, MODULES
from tests.guests.pool import GuestPool
from tests.guests.waiting import wait_for
from tests.isolation.frames import MARKER, hostile_frames

__all__ = [
    "MQTT_PORT",
    "OWN_MAC",
    "Attempts",
    "NetworkGuest",
    "Ports",
    "Target",
    "network_guest",
    "stranger_beside",
]

CONFIG: Final = GuestConfig(
    "6.1", "pc", cpus=1, cpu_flags="la57=off", append="nokaslr", ram="memfd"
)
"""Cards can be plugged into this machine while it runs; another module looks at the same one."""

OWN_MAC: Final = "52:54:00:00:00:66"
FRAMES_A_REQUEST: Final = 20
"""A request to the guest's init has at most 4 KiB."""

MQTT_PORT: Final = 1883

SCAN_S: Final = 3600.0
"""A scan of all ports takes minutes; the test's own timeout comes first."""

WAIT_MS: Final = 150
"""How long ports that do not answer are waited for; what comes too late, the captures still see."""


Ports = Sequence[tuple[int, int]]
"""Ranges, first and last."""


@dataclass(frozen=True, slots=True)
class Target:
    """This is whom a guest tries to reach: at this address, also by a frame straight to this card."""

    address: str
    mac: str


@dataclass(slots=True)
class Attempts:
    """This is what came of a guest's attempts.

    Attributes:
        open: the ports that accepted a connection, by address.
        arp: the addresses that somebody said he has.
        tried: how many ports were tried.
        frames: how many frames were sent.
    """

    open: dict[str, set[int]] = field(default_factory=dict)
    arp: set[str] = field(default_factory=set)
    tried: int = 0
    frames: int = 0


@dataclass(slots=True)
class NetworkGuest:
    """This is a guest that can be plugged into networks, one at a time."""

    guest: Guest

    @contextmanager
    def plugged(self, netdev: str, mac: str = OWN_MAC) -> Iterator[None]:
        """This plugs in a card with that ``-netdev``, whose id is ``bus``, and pulls it."""
        monitor = self.guest.monitor
        card = f"virtio-net-pci,netdev=bus,id=card,mac={mac}"
        for command in (f'netdev_add "{netdev}"', f"device_add {card}"):
            said = monitor.human(command)
            assert said == "", said
        wait_for(self.guest, CARD)
        try:
            yield
        finally:
            monitor.execute("device_del", id="card")
            # One of its parts is told first, without a name.
            while monitor.wait_for_event("DEVICE_DELETED")["data"].get("device") != "card":
                pass
            wait_for(self.guest, CARD, gone=True)
            monitor.human("netdev_del bus")

    def shell(self, command: str) -> str:
        return self.guest.run(command).decode()

    def configure(self, address: str, gateway: str | None = None, mac: str | None = None) -> None:
        """This gives the card an address, and with it a way to everywhere."""
        mac_words = f"ip link set eth0 address {mac};" if mac else ""
        route = f"; ip route add default via {gateway}" if gateway else ""
        self.guest.run(
            f"ip link set eth0 down; ip addr flush dev eth0; {mac_words} ip link set eth0 up"
        )
        said = self.guest.run(f"ip addr add {address} dev eth0{route}").decode()
        assert said == "", said

    def scan(
        self, address: str, ports: Ports, attempts: Attempts, *, wait_ms: int = WAIT_MS
    ) -> None:
        """This tries to connect to each port, and sends a datagram to each."""
        found = attempts.open.setdefault(address, set())
        for first, last in ports:
            (row,) = self.guest.ask(f"probe tcp {address} {first} {last} {wait_ms}", seconds=SCAN_S)
            found.update(row["open"])
            self.guest.ask(f"probe udp {address} {first} {last} {MARKER.decode()}", seconds=SCAN_S)
            attempts.tried += last - first + 1

    def send_frames(self, targets: Sequence[Target], addresses: Sequence[str], port: int) -> int:
        """This sends every hostile frame, and is how many left."""
        macs = (OWN_MAC, *(target.mac for target in targets))
        frames = [frame.hex() for frame in hostile_frames(macs, addresses, port)]
        sent = 0
        for at in range(0, len(frames), FRAMES_A_REQUEST):
            (row,) = self.guest.ask(
                f"probe frames eth0 {' '.join(frames[at : at + FRAMES_A_REQUEST])}"
            )
            sent += row["count"]
        return sent

    def answered_arp(self, address: str, *, seconds: int = 1) -> bool:
        """Tell whether somebody says within that time that he has an address."""
        said = self.shell(f"arping -f -c {seconds} -w {seconds} -I eth0 {address}")
        return "reply from" in said.lower()

    def through_the_gateway(
        self, own: str, gateway: str, targets: Sequence[Target], ports: Ports, attempts: Attempts
    ) -> None:
        """This tries all targets as somebody whom the host, or QEMU, routes for."""
        self.configure(f"{own}/24", gateway, OWN_MAC)
        for target in targets:
            self.scan(target.address, ports, attempts)
        words = (f"arping -f -c 1 -w 1 -I eth0 {target.address}" for target in targets)
        said = self.shell(f"{' & '.join(words)} & ping6 -c 1 -w 1 ff02::1%eth0; wait")
        attempts.arp |= {one.address for one in targets if f"reply from {one.address}" in said}

    def as_one(
        self,
        identity: Target,
        targets: Sequence[Target],
        ports: Ports,
        attempts: Attempts,
        *,
        wait_ms: int = WAIT_MS,
    ) -> None:
        """This takes an identity on the network of the bus, and tries the others there."""
        self.configure(f"{identity.address}/24", mac=identity.mac)
        for target in targets:
            if target != identity:
                self.guest.run(f"arp -i eth0 -s {target.address} {target.mac}")
                self.scan(target.address, ports, attempts, wait_ms=wait_ms)

    def as_a_neighbour(self, targets: Sequence[Target], ports: Ports, attempts: Attempts) -> None:
        """This tries all targets as somebody beside them, and each of them as the other one."""
        identities = (stranger_beside(targets), *targets)
        for identity in identities:
            self.as_one(identity, targets, ports, attempts)
        self.send_every_frame(targets, attempts)

    def send_every_frame(self, targets: Sequence[Target], attempts: Attempts) -> None:
        """This sends every hostile frame, from all addresses to all."""
        identities = (stranger_beside(targets), *targets)
        self.configure(f"{identities[0].address}/24", mac=OWN_MAC)
        addresses = [one.address for one in identities]
        attempts.frames += self.send_frames(targets, addresses, MQTT_PORT)


def stranger_beside(targets: Sequence[Target]) -> Target:
    """This is a neighbour of theirs that nobody knows."""
    return Target(f"{targets[0].address.rpartition('.')[0]}.66", OWN_MAC)


def network_guest(pool: GuestPool) -> NetworkGuest:
    """This thaws a guest that has the drivers of a card, and none yet."""
    guest = pool.restore(CONFIG)
    for module in MODULES:
        guest.ask(f"load {module}")
    return NetworkGuest(guest)
