"""Whether the broker lets in only whom it should."""

from collections.abc import Iterator
from typing import Final

from qvmi.manager.isolation.check import Check, Finding, not_checkable, proven, refuted
from qvmi.manager.isolation.facts import Broker, Facts, Unseen
from qvmi.manager.isolation.reach import WILDCARDS, has_its_own_network, network_listeners

__all__ = ["access", "bridge", "bus_files", "listeners", "neighbours", "users"]

_AS_ROOT: Final = "run qvmi as root"
_MOST_LINES: Final = 10
"""Lines of an access list that are told."""
_CLOSED: Final = frozenset({"tun"})


def listeners(broker: Broker) -> Check:
    """This judges all sockets that the broker listens on, not those it was told to."""
    name = "the broker listens only where it was meant to"
    if isinstance(broker.process.descriptors, Unseen):
        return Check(name, (not_checkable(broker.process.descriptors.reason, _AS_ROOT),))
    found: list[Finding] = []
    for each in network_listeners(broker):
        if each.local.startswith(WILDCARDS):
            fix = "name an address: listener PORT ADDRESS"
            found.append(refuted(f"it listens on {each.local}: on every interface", fix))
        else:
            found.append(proven(f"it listens on {each.local}"))
    for socket in broker.sockets:
        shown = f"it listens on {socket.path} (mode {socket.mode:04o})"
        if socket.others:
            fix = "put it into a folder of mode 700"
            found.append(refuted(f"{shown}, to which {socket.others} may connect", fix))
        else:
            found.append(proven(f"{shown}, which is closed to others"))
    if found:
        return Check(name, tuple(found))
    return Check(
        name, (not_checkable(f"no listening socket of {broker.process} was found", _AS_ROOT),)
    )


def access(broker: Broker) -> Check:
    """This judges whether the broker asks for a name, and what a name may do."""
    name = "the broker lets nobody in without a name, and each only to its topics"
    return Check(name, (*_anonymous(broker), *_access_list(broker)))


def _anonymous(broker: Broker) -> Iterator[Finding]:
    fix = "set allow_anonymous false and a password_file"
    if broker.anonymous is True:
        yield refuted("it let somebody in who gave no name", fix)
    elif broker.anonymous is False:
        yield proven("it refused somebody who gave no name")
    if not isinstance(broker.config, Unseen):
        if broker.config.anonymous and broker.anonymous is not True:
            yield refuted(f"{_file(broker.config.path)} allows those without a name", fix)
        elif isinstance(broker.anonymous, Unseen):
            yield proven(f"{_file(broker.config.path)} allows nobody without a name")


def _access_list(broker: Broker) -> Iterator[Finding]:
    config = broker.config
    if isinstance(config, Unseen):
        yield not_checkable(config.reason, _AS_ROOT)
        return
    if isinstance(config.sweeping, Unseen):
        yield not_checkable(config.sweeping.reason, _AS_ROOT)
    elif config.has_access_list:
        yield proven(f"{_file(config.path)} names an access list")
        for line in config.sweeping[:_MOST_LINES]:
            fix = "name the topics of its own there"
            yield refuted(f"its access list lets somebody speak for everybody: {line}", fix)
    else:
        fix = "name an acl_file: without one each may speak for every other"
        yield refuted(f"{_file(config.path)} names no access list", fix)
    if config.beyond:
        shown = ", ".join(config.beyond)
        yield not_checkable(f"{_file(config.path)} has {shown}: their effect is not known", "")


def _file(path: str) -> str:
    return path or "a broker without a configuration file"


def bus_files(broker: Broker) -> Check:
    """This judges who may open the broker's secrets."""
    name = "the broker's files are closed to other users"
    if isinstance(broker.config, Unseen):
        return Check(name, (not_checkable(broker.config.reason, _AS_ROOT),))
    found: list[Finding] = []
    for each in broker.config.files:
        shown = f"{each.path} (mode {each.mode:04o})"
        if each.others:
            found.append(
                refuted(f"{shown} can be opened by {each.others}", f"chmod 600 {each.path}")
            )
        else:
            found.append(proven(f"{shown} is closed to others"))
    return Check.of(name, found, else_proven="it has none")


def bridge(facts: Facts, broker: Broker) -> Iterator[Check]:
    """This judges the bus's bridge, where one was named: its ports are taps alone."""
    if facts.bridge is None:
        return
    name = f"bridge {facts.bridge} leads to service VMs alone"
    if isinstance(broker.links, Unseen):
        yield Check(name, (not_checkable(broker.links.reason, _AS_ROOT),))
        return
    own = next((each for each in broker.links if each.name == facts.bridge), None)
    if own is None:
        missing = not_checkable("there is none of that name in the broker's namespace", "")
        yield Check(name, (missing,))
        return
    ports = [each for each in broker.links if each.master == own.index]
    found = [
        refuted(
            f"its port {each.name} is a {each.kind or 'network card'}", "take it off the bridge"
        )
        for each in ports
        if each.kind not in _CLOSED
    ]
    yield Check.of(
        name, found, else_proven=f"its ports: {', '.join(p.name for p in ports) or 'none'}"
    )


def neighbours(facts: Facts, broker: Broker) -> Iterator[Check]:
    """This judges who has a tap or tun of the bus's open: a VM, and nobody who may carry on what it is told.

    Those are all of a network namespace that is the broker's own, and the ports of the bus's bridge.
    """
    if isinstance(broker.links, Unseen):
        return  # which the other checks tell
    named = {each.index for each in broker.links if each.name == facts.bridge}
    all_of_them = has_its_own_network(facts)
    taps = [
        each
        for each in broker.links
        if each.kind in _CLOSED and (all_of_them or each.master in named)
    ]
    if taps:
        found = [finding for each in taps for finding in _held(facts, broker, each.name)]
        shown = f"{', '.join(each.name for each in taps)}: each is open in a QEMU, or nowhere"
        yield Check.of(
            "the bus's taps are open in virtual machines alone", found, else_proven=shown
        )


def _held(facts: Facts, broker: Broker, port: str) -> Iterator[Finding]:
    """This judges who has a port of the bus's open: a VM, and no program that may carry frames elsewhere."""
    holders = [
        each
        for each in facts.host.taps
        if each.interface == port and each.network in {0, broker.process.network}
    ]
    for each in holders:
        shown = f"{port} is open in {each.program or 'process'} (pid {each.pid})"
        if each.is_qemu:
            continue  # the machine's own is told by its interfaces
        if each.network:
            yield refuted(f"{shown}, which is no QEMU", "end that program")
        else:
            yield not_checkable(f"{shown}, or another one of that name is", _AS_ROOT)
    if facts.host.hidden and not holders:
        yield not_checkable(f"who has {port} open: {facts.host.hidden}", _AS_ROOT)


def users(facts: Facts, broker: Broker) -> Check:
    """This advises on what contains a QEMU that the guest has broken out into."""
    name = "advice: QEMU has a user of its own"
    if facts.qemu.uid != broker.process.uid:
        shown = f"QEMU is uid {facts.qemu.uid}, the broker uid {broker.process.uid}"
        return Check(name, (proven(shown),), decides=False)
    shown = f"QEMU and the broker are both uid {facts.qemu.uid}: who breaks out of QEMU has the bus"
    return Check(name, (refuted(shown, "run QEMU as another user"),), decides=False)
