"""What can be reached over IP from a machine's network namespace: pure reasoning over facts."""

from collections.abc import Iterator
from typing import Final

from qvmi.manager.isolation.check import Finding, not_checkable, proven, refuted
from qvmi.manager.isolation.facts import Broker, Facts, Link, Socket, Unseen

__all__ = [
    "WILDCARDS",
    "has_its_own_network",
    "is_loopback",
    "is_place_of",
    "network_listeners",
    "reach_of_the_host",
    "uplinks",
]

_LEADS_NOWHERE: Final = frozenset({"bridge", "tun", "dummy"})
WILDCARDS: Final = ("0.0.0.0:", "[::]:")
"""How the kernel's address of a socket begins that listens on every interface."""
_LOOPBACK: Final = ("127.", "[::1]")
_OWN_NETWORK: Final = (
    "give the broker a network namespace of its own, or let it listen on a Unix socket alone"
)


def network_listeners(broker: Broker) -> tuple[Socket, ...]:
    """These are the broker's sockets that can be reached over IP."""
    return tuple(each for each in broker.listening if each.protocol != "unix")


def is_loopback(listener: Socket) -> bool:
    """This tells whether a socket takes connections of its own namespace alone."""
    return listener.local.startswith(_LOOPBACK)


def is_place_of(listener: Socket, place: str) -> bool:
    """This tells whether a connection to a place is one to this listener."""
    if listener.local.startswith(WILDCARDS):
        return place.rpartition(":")[2] == listener.local.rpartition(":")[2]
    return place == listener.local


def uplinks(links: tuple[Link, ...]) -> tuple[str, ...]:
    """These are the interfaces by which packets may leave a namespace of the bus's."""
    return tuple(
        each.name
        for each in links
        if each.up and not each.loopback and each.kind not in _LEADS_NOWHERE
    )


def has_its_own_network(facts: Facts) -> bool:
    """This tells whether the broker's network namespace is known not to be the machine's."""
    if facts.broker is None:
        return False
    own, qemu = facts.broker.process.network, facts.qemu.network
    if any(each.network == qemu for each in network_listeners(facts.broker)):
        return False  # a process may enter another namespace after it listens
    return isinstance(own, int) and isinstance(qemu, int) and own != qemu


def reach_of_the_host(facts: Facts, who: str) -> Iterator[Finding]:
    """This is what somebody reaches who may open connections as QEMU's process could."""
    broker = facts.broker
    if broker is None:
        yield proven(f"{who} reaches what this host reaches, its loopback too; no bus was named")
        return
    unseen = [
        each.reason
        for each in (facts.qemu.network, broker.process.network, broker.process.descriptors)
        if isinstance(each, Unseen)
    ]
    listeners = network_listeners(broker)
    if unseen:
        yield not_checkable(f"{who}: {unseen[0]}", "run qvmi as root")
    elif not listeners:
        yield proven(f"{who}; the broker listens on Unix sockets alone, to which it has no way")
    elif has_its_own_network(facts):
        yield from _from_elsewhere(broker, listeners, who)
    else:
        for each in listeners:
            yield refuted(
                f"{who} reaches {each.local}, where {broker.process} listens: both are in network"
                f" namespace {broker.process.network}",
                _OWN_NETWORK,
            )


def _from_elsewhere(broker: Broker, listeners: tuple[Socket, ...], who: str) -> Iterator[Finding]:
    where = f"network namespace {broker.process.network}"
    reachable = [each.local for each in listeners if not is_loopback(each)]
    if isinstance(broker.links, Unseen):
        yield not_checkable(f"{who}: {broker.links.reason}", "run qvmi as root")
        return
    ways = uplinks(broker.links)
    if reachable and ways:
        yield refuted(
            f"{who} may reach {', '.join(reachable)}, where {broker.process} listens: {where} has a"
            f" way out by {', '.join(ways)}",
            "take that interface out of the bus's namespace",
        )
        return
    shown = ", ".join(each.name for each in broker.links)
    yield proven(f"{who}; the broker is in {where}, whose interfaces lead nowhere else: {shown}")
