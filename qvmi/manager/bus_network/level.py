"""Which level of isolation a bus network has here: chosen from facts, or refused with the reasons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from qvmi.errors import IsolationRefused

__all__ = ["Choice", "HostFacts", "Level", "UserNic", "Way", "choose"]


class Level(Enum):
    """This is what keeps the user VM from the bus.

    Attributes:
        A: the bus has a network namespace of its own.
        B: the bus has no network at all; service VMs reach its Unix socket through QEMU.
        C: the bus has a bridge in the host's namespace, and packet filters.
    """

    A = "A"
    B = "B"
    C = "C"


class Way(Enum):
    """This is how a level is had."""

    ROOTLESS = "a network namespace within a user namespace"
    ROOT = "a network namespace made by root"
    GUESTFWD = "restrict=on and guestfwd to the broker's Unix socket"
    HOST_BRIDGE = "a bridge in the host's namespace behind nftables"


_LEVELS: Final[Mapping[Way, Level]] = {
    Way.ROOTLESS: Level.A,
    Way.ROOT: Level.A,
    Way.GUESTFWD: Level.B,
    Way.HOST_BRIDGE: Level.C,
}
"""The best way first. Rootless is better: broker and service VMs then have no rights over the host."""

_HARMLESS_BACKENDS: Final = frozenset({"tap", "bridge"})
"""What a packet filter by interface holds back; others send from QEMU itself, which is a host's process."""


@dataclass(frozen=True, slots=True)
class UserNic:
    """This is how a card of the user VM is attached.

    Attributes:
        backend: QEMU's type of netdev, as ``tap`` or ``user``.
        restricted: whether ``restrict=on`` is given, of ``user``.
        bridge: the bridge that its tap is a port of; None for no bridge, or one that is not known.
    """

    backend: str
    restricted: bool = False
    bridge: str | None = None


@dataclass(frozen=True, slots=True)
class HostFacts:
    """This is what was found when each way was tried on this host.

    Attributes:
        obstacles: why a way cannot be had, with the fix; a way that is not in it can be had.
    """

    obstacles: Mapping[Way, str]


@dataclass(frozen=True, slots=True)
class Choice:
    """This is the level that was chosen.

    Attributes:
        way: how it is had.
        passed_over: why each better way was not taken, the best first.
    """

    way: Way
    passed_over: tuple[str, ...] = ()

    @property
    def level(self) -> Level:
        """This is the level of that way."""
        return _LEVELS[self.way]

    def __str__(self) -> str:
        return f"level {self.level.value}: {self.way.value}"


def choose(
    host: HostFacts,
    user_nics: Sequence[UserNic],
    *,
    wanted: Level | None = None,
    bus_bridge: str | None = None,
) -> Choice:
    """This chooses the best level that can be had, and is safe beside this user VM.

    Args:
        host: what this host can do.
        user_nics: every card of the user VM.
        wanted: this level and no other.
        bus_bridge: the bridge that level C would make.

    Raises:
        IsolationRefused: none can be had, or none is safe; the error tells why of each.
    """
    against: list[str] = []
    for way, level in _LEVELS.items():
        if wanted not in (None, level):
            continue
        obstacle = host.obstacles.get(way) or _danger(way, user_nics, bus_bridge)
        if not obstacle:
            return Choice(way, tuple(against))
        against.append(f"level {level.value}, {way.value}: {obstacle}")
    raise IsolationRefused(wanted.value if wanted else "A, B or C", tuple(against))


def _danger(way: Way, user_nics: Sequence[UserNic], bus_bridge: str | None) -> str:
    """This is why a way would not isolate this user VM; empty when it does."""
    if way is not Way.HOST_BRIDGE:
        return ""  # the user VM's QEMU is in another network, or the bus is in none
    for nic in user_nics:
        if nic.backend == "user" and not nic.restricted:
            return "the user VM's user netdev connects as the host itself does: add restrict=on"
        if nic.backend not in _HARMLESS_BACKENDS and nic.backend != "user":
            return f"it is not known what the user VM reaches by its {nic.backend} netdev"
        if bus_bridge is not None and nic.bridge == bus_bridge:
            return f"the user VM is on {bus_bridge} itself"
    return ""
