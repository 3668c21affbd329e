"""Collects the facts about one machine, one broker and this host, and concludes nothing from them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from qvmi.errors import BrokerUnavailable, MachineGone
from qvmi.host.address import TcpAddress, UnixAddress
from qvmi.host.host_process import pids
from qvmi.manager.isolation.anonymous import admits_anybody
from qvmi.manager.isolation.broker_config import read_config
from qvmi.manager.isolation.facts import (
    Broker,
    Facts,
    GivenDisk,
    Link,
    Machine,
    Opening,
    Process,
    Unseen,
)
from qvmi.manager.isolation.given_disks import Mounts, given_disks, mounts
from qvmi.manager.isolation.monitor_facts import network_options
from qvmi.manager.isolation.named_paths import named_paths, seen_from_here, socket_ends
from qvmi.manager.isolation.namespaces import (
    links_of,
)
from qvmi.manager.isolation.permissions import bus_path, opening
from qvmi.manager.isolation.processes import (
    inode_of_namespace,
    process,
    started_at,
)
from qvmi.manager.isolation.shared_folders import shared_folders
from qvmi.manager.isolation.surroundings import Surroundings, socket_inodes
from qvmi.qmp.command_line import Purpose, parse_command_line

__all__ = ["Bus", "Target", "gather"]

_CONTROLS: Final = frozenset({Purpose.QMP, Purpose.HMP, Purpose.GDB})


@dataclass(frozen=True, slots=True)
class Bus:
    """This names the bus that the machine must not reach.

    Args:
        broker: the pid of the broker that carries it.
        bridge: the bus's bridge in the broker's network namespace; None where it has none.
        probe: a client's name by which the broker's owner knows the one that gives no user; None where
            it need not.
    """

    broker: int
    bridge: str | None = None
    probe: str | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """This names the machine.

    Args:
        pid: QEMU's.
        said: what it says of itself.
        listener: who made its QMP socket; None where the kernel does not tell.
        ours: inodes of this program's connections to it.
        sockets: paths of its control sockets that are known besides its command line.
    """

    pid: int
    said: Machine | Unseen
    listener: int | None = None
    ours: frozenset[int] = frozenset()
    sockets: tuple[str, ...] = ()


def gather(target: Target, bus: Bus | None) -> Facts:
    """This looks at processes, sockets, interfaces and files; it takes some 0.1 s.

    Raises:
        MachineGone: QEMU ended meanwhile.
        BrokerUnavailable: the broker ended meanwhile.
    """
    gone = MachineGone(f"a look at pid {target.pid}")
    no_broker = BrokerUnavailable(f"no broker with pid {bus and bus.broker} runs (any more)")
    begun = started_at(target.pid), bus and started_at(bus.broker)
    qemu = process(target.pid, gone=gone)
    broker = None if bus is None else process(bus.broker, gone=no_broker)
    view = Surroundings.of(qemu, broker)
    facts = _of_the_machine(target, view)
    facts = replace(facts, disks=_disks(view.qemu, mounts()))
    if view.broker is not None and bus is not None:
        facts = _with_broker(facts, _broker(view.broker, view, bus.probe), bus)
    if started_at(target.pid) != begun[0]:
        raise gone
    if bus is not None and started_at(bus.broker) != begun[1]:
        raise no_broker
    return facts


def _disks(qemu: Process, mounted: Mounts | Unseen) -> tuple[GivenDisk, ...] | Unseen:
    """These are the host's disks that QEMU has open; its descriptors are looked at for other reasons, too."""
    if isinstance(qemu.descriptors, Unseen):
        return qemu.descriptors
    if isinstance(mounted, Unseen):
        return mounted
    return tuple(given_disks(qemu.descriptors, mounted))


def _of_the_machine(target: Target, view: Surroundings) -> Facts:
    qemu = view.qemu
    addresses = list(_control_addresses(qemu))
    paths, unseen = _openings(qemu.pid, [*target.sockets, *_unix_paths(addresses)])
    return Facts(
        machine=target.said,
        options=network_options(qemu.arguments[1:]),
        qemu=qemu,
        listener=target.listener,
        links=_links(qemu),
        controls=frozenset(map(_control_name, addresses)) | frozenset(target.sockets),
        control_sockets=paths,
        ours=target.ours,
        folders=tuple(shared_folders(view)),
        paths=(),
        host=view.host(unseen),
        named=named_paths(qemu.pid, qemu.arguments),
        ends=socket_ends(qemu.pid, target.said),
    )


def _with_broker(facts: Facts, broker: Broker, bus: Bus) -> Facts:
    files = () if isinstance(broker.config, Unseen) else broker.config.files
    on_disk = [*broker.sockets, *files, *facts.control_sockets]
    paths = tuple(bus_path(Path(each.path)) for each in on_disk)
    return replace(facts, broker=broker, bridge=bus.bridge, paths=paths)


def _links(found: Process) -> tuple[Link, ...] | Unseen:
    if isinstance(found.network, Unseen):
        return found.network
    return links_of(found.pid, found.network)


def _control_addresses(qemu: Process) -> Iterator[UnixAddress | TcpAddress]:
    for each in parse_command_line(qemu.arguments[1:]).sockets:
        if each.purpose in _CONTROLS and each.address is not None:
            yield each.address


def _control_name(address: UnixAddress | TcpAddress) -> str:
    """This is a control socket's name as the kernel's tables have it; of TCP the port alone."""
    return address.path if isinstance(address, UnixAddress) else f":{address.port}"


def _unix_paths(addresses: Iterable[UnixAddress | TcpAddress]) -> Iterator[str]:
    return (each.path for each in addresses if isinstance(each, UnixAddress))


def _openings(pid: int, names: Iterable[str]) -> tuple[tuple[Opening, ...], tuple[str, ...]]:
    found: dict[str, Opening] = {}
    unseen: list[str] = []
    for name in dict.fromkeys(names):
        path = seen_from_here(pid, name)
        seen = opening(path)
        if seen is None:
            unseen.append(f"the socket {name} cannot be seen from here")
        else:
            found.setdefault(seen.path, seen)
    return tuple(found.values()), tuple(unseen)


def _broker(found: Process, view: Surroundings, probe: str | None) -> Broker:
    own = [view.sockets[i] for i in socket_inodes(found) if i in view.sockets]
    listening = tuple(each for each in own if each.listening)
    names = [each.local for each in listening if each.protocol == "unix"]
    openings, _ = _openings(found.pid, names)
    asked: bool | Unseen = Unseen("it has no Unix socket")
    if openings:
        asked = admits_anybody(openings[0].path, probe=probe)
    members = view.owners_behind(found) | {found.pid} | _crowd_of(found, view.qemu)
    return Broker(
        process=found,
        config=read_config(found.pid, found.arguments),
        listening=listening,
        sockets=openings,
        anonymous=asked,
        members=frozenset(members - {view.qemu.pid}),
        links=_links(found),
    )


def _crowd_of(broker: Process, qemu: Process) -> set[int]:
    """These are the processes in a network namespace that is the bus's own."""
    shared = {qemu.network, inode_of_namespace(1), inode_of_namespace("self")}
    if broker.network in shared:
        return set()
    return {pid for pid in pids() if inode_of_namespace(pid) == broker.network}
