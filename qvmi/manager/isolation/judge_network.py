"""Whether the guest's network leads to the bus, by QEMU's word and by the kernel's."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from qvmi.manager.isolation.check import Check, Finding, not_checkable, proven, refuted
from qvmi.manager.isolation.facts import Descriptor, Facts, Link, Machine, Netdev, Unseen
from qvmi.manager.isolation.reach import (
    has_its_own_network,
    is_loopback,
    network_listeners,
    reach_of_the_host,
)
from qvmi.manager.isolation.tun_place import is_tun

__all__ = ["interface_names", "netdevs", "taps"]

_OWN_PORT: Final = re.compile(r"hub\d+port\d+")
"""How QEMU names the ports of ``-net``, from which nothing can be unplugged."""
_IFNAME: Final = re.compile(r"\bifname=([^,]+)")
_MOVE_TAP: Final = (
    "give the VM's tap a bridge of its own, and the bus a network namespace of its own"
)
_NO_FORWARD: Final = "leave hostfwd out, or run the bus in a network namespace of its own"


def netdevs(facts: Facts) -> Check:
    """This judges what QEMU says of NICs and what is behind them."""
    name = "no network of the guest's leads to the bus (QEMU's word)"
    machine = facts.machine
    if isinstance(machine, Unseen):
        return Check(name, (not_checkable(machine.reason, "end the client that holds its QMP"),))
    found = [
        *_of_each(facts, machine),
        *_forwards(facts, machine),
        *_guest_forwards(facts, machine),
    ]
    return Check.of(name, found, else_proven="QEMU tells of no NIC and of no netdev")


def _of_each(facts: Facts, machine: Machine) -> Iterator[Finding]:
    for netdev in machine.netdevs:
        yield from _JUDGES.get(netdev.kind, _other)(facts, netdev)


def _user(facts: Facts, netdev: Netdev) -> Iterator[Finding]:
    if "restrict=on" in netdev.details.split(","):
        yield proven(f"{netdev.name}: slirp with restrict=on lets the guest reach nothing")
    else:
        yield from reach_of_the_host(facts, f"{netdev.name}: slirp without restrict=on")


def _nothing(_: Facts, netdev: Netdev) -> Iterator[Finding]:
    yield proven(f"{netdev.name}: {netdev.kind} {netdev.details}")


def _other(facts: Facts, netdev: Netdev) -> Iterator[Finding]:
    """This is a backend whose other side is a program, or anybody who joins."""
    shown = f"{netdev.name}: {netdev.kind} {netdev.details}".rstrip()
    if facts.broker is None:
        yield proven(f"{shown}: who is at its other end has the guest's frames; no bus was named")
    elif netdev.kind in _BY_IP and not has_its_own_network(facts):
        yield refuted(
            f"{shown}, in the broker's network namespace: whoever is on the bus may join it",
            "use a tap with a bridge of its own, or slirp with restrict=on",
        )
    else:
        yield not_checkable(
            f"{shown}: what the program at its other end does with the guest's frames is not known",
            "use a tap with a bridge of its own, or slirp with restrict=on",
        )


_BY_IP: Final = frozenset({"socket", "dgram", "l2tpv3"})
_JUDGES: Final[Mapping[str, Callable[[Facts, Netdev], Iterator[Finding]]]] = {
    "user": _user,
    "nic": _nothing,
    "hubport": _nothing,
    "tap": _nothing,  # where it leads is the kernel's to say
}


def _forwards(facts: Facts, machine: Machine) -> Iterator[Finding]:
    for line in machine.forwards:
        shown = f"hostfwd: {' '.join(line.split())}"
        if facts.broker is None:
            yield proven(f"{shown}; no bus was named")
        elif has_its_own_network(facts):
            yield proven(f"{shown}: the bus is in another network namespace")
        else:
            yield refuted(
                f"{shown}, in the broker's network namespace: whoever is on the bus may talk with the"
                " guest through it",
                _NO_FORWARD,
            )


def _guest_forwards(facts: Facts, machine: Machine) -> Iterator[Finding]:
    """These are the addresses of slirp's that lead out; QEMU tells of none of them over QMP."""
    if facts.broker is None:
        return
    for option in facts.options:
        for text in option.guestfwd:
            yield from _guest_forward(facts, option.name, text)
    for netdev in machine.netdevs:
        unknown = _why_unknown(facts, machine, netdev) if netdev.kind == "user" else ""
        if unknown:
            yield not_checkable(
                f"{netdev.name}: slirp {unknown}; QEMU does not tell its guestfwd",
                "give it on the command line",
            )


def _why_unknown(facts: Facts, machine: Machine, netdev: Netdev) -> str:
    """This is why the command line does not tell where a slirp leads; empty where it does."""
    if netdev.name.startswith("#"):
        # QEMU names those without an id itself, as nobody can who plugs one in.
        return "of a configuration file" if _reads_files(facts) else ""
    if netdev.name not in {option.name for option in facts.options}:
        return "that was plugged in later"
    if netdev.name in machine.plugged:
        return "behind a card that was plugged in later, as it may have been itself"
    if netdev.port and not _OWN_PORT.fullmatch(netdev.port):
        return f"behind {netdev.port}, a port of a hub, to which another may have been plugged in"
    return ""


def _reads_files(facts: Facts) -> bool:
    return any(each.lstrip("-") == "readconfig" for each in facts.qemu.arguments)


def _guest_forward(facts: Facts, name: str, text: str) -> Iterator[Finding]:
    shown = f"{name}: guestfwd={text}"
    target = text.partition("-")[2]  # behind the guest's own address
    if any(place in target for place in _places_of_the_bus(facts)):
        yield refuted(f"{shown} leads to the broker", "leave that guestfwd out")
    elif target.startswith("cmd:"):
        yield not_checkable(
            f"{shown} runs a program for the guest when it connects", "leave that guestfwd out"
        )
    else:
        yield proven(f"{shown}: where it leads is told by QEMU's sockets")


def _places_of_the_bus(facts: Facts) -> Iterator[str]:
    if facts.broker is not None:
        yield from (each.path for each in facts.broker.sockets)
        for each in network_listeners(facts.broker):
            yield f":{each.local.rpartition(':')[2]}"


def interface_names(machine: Machine) -> set[str]:
    """These are the interfaces that QEMU says are behind its taps."""
    matches = (_IFNAME.search(each.details) for each in machine.netdevs if each.kind == "tap")
    return {match[1] for match in matches if match}


def taps(facts: Facts) -> Check:
    """This judges the network interfaces that QEMU has open."""
    name = "no interface of QEMU's leads to the bus (the kernel's word)"
    descriptors = facts.qemu.descriptors
    if isinstance(descriptors, Unseen):
        return Check(name, (not_checkable(descriptors.reason, "run qvmi as root"),))
    tuns = [each for each in descriptors if is_tun(each.target, each.special)]
    found = [finding for each in tuns for finding in _tap(facts, each)]
    return Check.of(name, found, else_proven="QEMU has no tun open")


def _tap(facts: Facts, descriptor: Descriptor) -> Iterator[Finding]:
    shown = f"fd {descriptor.number}: {descriptor.interface or 'a tun without interface'}"
    links = facts.links
    if isinstance(links, Unseen):
        yield not_checkable(f"{shown}: {links.reason}", "run qvmi as root")
        return
    if _is_elsewhere(facts, descriptor):
        yield not_checkable(
            f"{shown} is in network namespace {descriptor.network}, which was not looked at",
            _MOVE_TAP,
        )
        return
    link = _named(links, descriptor.interface)
    if _is_in_the_bus(facts, descriptor):
        link = None
    master = _master(links, link)
    where = f"{shown}, a port of bridge {master}" if master else f"{shown}, in no bridge"
    if facts.broker is None:
        yield proven(f"{where}; no bus was named")
    elif has_its_own_network(facts):
        yield from _tap_elsewhere(facts, descriptor, link, where if link else shown)
    else:
        yield from _tap_beside_the_broker(facts, link, master, where)


def _is_elsewhere(facts: Facts, descriptor: Descriptor) -> bool:
    """This tells whether a tap is known to be in a namespace that is neither the machine's nor the bus's."""
    if facts.broker is None or not descriptor.network:
        return False
    return descriptor.network not in {facts.qemu.network, facts.broker.process.network}


def _is_in_the_bus(facts: Facts, descriptor: Descriptor) -> bool:
    """This tells whether a tap is known to be in the broker's namespace, which is not the machine's."""
    if facts.broker is None or not descriptor.network:
        return False
    own = facts.broker.process.network
    return descriptor.network == own and own != facts.qemu.network


def _tap_elsewhere(
    facts: Facts, descriptor: Descriptor, link: Link | None, shown: str
) -> Iterator[Finding]:
    assert facts.broker is not None  # noqa: S101 - the caller has looked
    bus = facts.broker.links
    if isinstance(bus, Unseen):
        yield not_checkable(f"{shown}: {bus.reason}", "run qvmi as root")
        return
    is_ours = bool(descriptor.network) and descriptor.network == facts.qemu.network
    there = None if is_ours else _named(bus, descriptor.interface)
    master = _master(bus, there)
    if there is not None and link is None:
        port = f", a port of bridge {master}" if master else ""
        yield refuted(f"{shown} is in the broker's network namespace{port}", _MOVE_TAP)
    elif there is not None:
        yield not_checkable(
            f"{shown}: there is one of that name in the bus's namespace, too", "name it otherwise"
        )
    elif link is None:
        yield not_checkable(f"{shown} is in a network namespace that was not found", _MOVE_TAP)
    else:
        yield from reach_of_the_host(facts, shown)


def _tap_beside_the_broker(
    facts: Facts, link: Link | None, master: str, shown: str
) -> Iterator[Finding]:
    assert facts.broker is not None  # noqa: S101 - the caller has looked
    listeners = network_listeners(facts.broker)
    if master and master == facts.bridge:
        yield refuted(f"{shown}, which is the bus's", _MOVE_TAP)
    elif link is None:
        yield not_checkable(f"{shown} is in a network namespace that was not found", _MOVE_TAP)
    elif isinstance(facts.broker.process.descriptors, Unseen):
        yield not_checkable(
            f"{shown}: {facts.broker.process.descriptors.reason}", "run qvmi as root"
        )
    elif not listeners:
        yield proven(f"{shown}; the broker listens on Unix sockets alone")
    for each in listeners if link is not None else ():
        place = f"where {facts.broker.process} listens on {each.local}"
        if is_loopback(each):
            yield not_checkable(
                f"{shown}, in the network namespace {place}: route_localnet would let it in",
                "let the broker listen on a Unix socket alone",
            )
        else:
            yield refuted(
                f"{shown}, in the network namespace {place}: Linux takes packets for any of its"
                " addresses on every interface",
                _MOVE_TAP,
            )


def _named(links: tuple[Link, ...], name: str) -> Link | None:
    return next((each for each in links if each.name == name), None)


def _master(links: tuple[Link, ...], link: Link | None) -> str:
    if link is None or not link.master:
        return ""
    return next((each.name for each in links if each.index == link.master), str(link.master))
