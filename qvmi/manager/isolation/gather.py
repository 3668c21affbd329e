"""Collects the facts about one machine, one broker and this host, and concludes nothing from them."""

import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Final, Self

from qvmi.errors import BrokerUnavailable, MachineGone
from qvmi.host.address import TcpAddress, UnixAddress
from qvmi.host.host_process import pids
from qvmi.manager.isolation.anonymous import admits_anybody
from qvmi.manager.isolation.broker_config import read_config
from qvmi.manager.isolation.crowd import Crowd
from qvmi.manager.isolation.facts import (
    Broker,
    Facts,
    Host,
    Link,
    Machine,
    Opening,
    Process,
    SharedFolder,
    Socket,
    Unseen,
)
from qvmi.manager.isolation.monitor_facts import network_options
from qvmi.manager.isolation.namespaces import (
    links_of,
    network_sockets,
    representatives,
    unix_sockets,
)
from qvmi.manager.isolation.permissions import bus_path, opening
from qvmi.manager.isolation.processes import (
    descriptors_of,
    inode_of_namespace,
    process,
    started_at,
)
from qvmi.qmp.command_line import Purpose, parse_command_line

__all__ = ["Bus", "Target", "gather"]

_CONTROLS: Final = frozenset({Purpose.QMP, Purpose.HMP, Purpose.GDB})
_MAX_ENTERED: Final = 64
"""Network namespaces that are entered to find a Unix socket, 30 ms each; the first two or three have it."""
_SHARES_FOLDERS: Final = "virtiofsd"


@dataclass(frozen=True, slots=True)
class Bus:
    """This names the bus that the machine must not reach.

    Args:
        broker: the pid of the broker that carries it.
        bridge: the bus's bridge in the broker's network namespace; None where it has none.
    """

    broker: int
    bridge: str | None = None


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
    begun = started_at(target.pid)
    qemu = process(target.pid, gone=gone)
    broker = None
    if bus is not None:
        no_broker = BrokerUnavailable(f"no broker with pid {bus.broker} runs (any more)")
        broker = process(bus.broker, gone=no_broker)
    view = _View.of(qemu, broker)
    qemu, broker = view.qemu, view.broker
    addresses = list(_control_addresses(qemu))
    paths, unseen = _openings(qemu.pid, [*target.sockets, *_unix_paths(addresses)])
    facts = Facts(
        machine=target.said,
        options=network_options(qemu.arguments[1:]),
        qemu=qemu,
        listener=target.listener,
        links=_links(qemu),
        controls=frozenset(map(_control_name, addresses)) | frozenset(target.sockets),
        control_sockets=paths,
        ours=target.ours,
        folders=tuple(_folders(qemu, view)),
        paths=(),
        host=view.host(unseen),
    )
    if broker is not None and bus is not None:
        facts = _with_broker(facts, _broker(broker, qemu, view), bus)
    if started_at(target.pid) != begun:
        raise gone
    return facts


def _with_broker(facts: Facts, broker: Broker, bus: Bus) -> Facts:
    files = () if isinstance(broker.config, Unseen) else broker.config.files
    on_disk = [*broker.sockets, *files, *facts.control_sockets]
    paths = tuple(bus_path(Path(each.path)) for each in on_disk)
    return replace(facts, broker=broker, bridge=bus.bridge, paths=paths)


@dataclass(frozen=True, slots=True)
class _View:
    """This is what was seen of the whole host.

    Args:
        qemu: the machine's process, without what it has closed meanwhile.
        broker: the broker's, likewise.
        sockets: by inode.
        far_ends: for a socket's inode those at its other end.
        crowd: who has them open.
        unseen: what could not be looked at.
    """

    qemu: Process
    broker: Process | None
    sockets: Mapping[int, Socket]
    far_ends: Mapping[int, tuple[int, ...]]
    crowd: Crowd
    unseen: tuple[str, ...]

    @classmethod
    def of(cls, qemu: Process, broker: Process | None) -> Self:
        """This looks at all that these two have to do with."""
        both = [each for each in (qemu, broker) if each is not None]
        sockets, unseen = _tables(both)
        both = [_without_closed(each, sockets) for each in both]
        ends = _far_ends(both, sockets)
        files = () if isinstance(qemu.shared, Unseen) else qemu.shared
        crowd = Crowd(
            frozenset(chain.from_iterable(ends.values())),
            frozenset(_pipes(qemu)),
            frozenset((each.device, each.inode) for each in files),
            qemu.pid,
        )
        crowd.look()
        return cls(both[0], both[-1] if broker else None, sockets, ends, crowd, unseen)

    def host(self, unseen: Sequence[str]) -> Host:
        """This is what is concluded from later."""
        crowd = self.crowd
        return Host(
            sockets=self.sockets,
            far_ends=self.far_ends,
            owners={inode: tuple(sorted(owners)) for inode, owners in crowd.owners.items()},
            names=crowd.names,
            sharers=tuple(crowd.sharers),
            pipes=tuple(sorted(crowd.holders)),
            hidden=crowd.hidden,
            unseen=(*self.unseen, *unseen),
        )

    def owners_behind(self, found: Process) -> set[int]:
        """These are the processes at the other ends of a process's sockets."""
        ends = chain.from_iterable(self.far_ends.get(i, ()) for i in _socket_inodes(found))
        return set(chain.from_iterable(self.crowd.owners.get(end, ()) for end in ends))


def _tables(both: Sequence[Process]) -> tuple[dict[int, Socket], tuple[str, ...]]:
    """This reads the tables of sockets of all namespaces, the Unix ones as long as some are missed.

    The end of a Unix connection that was accepted is in the namespace of the one who connected
    (``unix_stream_connect`` in Linux ``net/unix/af_unix.c``), which may be any.
    """
    unseen: list[str] = []
    likely = [
        *((each.network, each.pid) for each in both),
        (inode_of_namespace("self"), os.getpid()),
    ]
    networks = {number: pid for number, pid in likely if isinstance(number, int)}
    known = representatives()
    if isinstance(known, Unseen):
        unseen.append(known.reason)
    else:
        networks = {**networks, **{n: pid for n, pid in known.items() if n not in networks}}
    sockets: dict[int, Socket] = {}
    for network, pid in networks.items():
        sockets.update((each.inode, each) for each in network_sockets(pid, network) if each.inode)
    wanted = frozenset(chain.from_iterable(map(_socket_inodes, both)))
    for network, pid in islice(networks.items(), _MAX_ENTERED):
        if wanted <= sockets.keys():
            break
        found = unix_sockets(pid, network)
        if isinstance(found, Unseen):
            unseen.append(found.reason)
        else:
            sockets.update((each.inode, each) for each in found)
    return sockets, tuple(unseen)


def _without_closed(found: Process, sockets: Mapping[int, Socket]) -> Process:
    """This leaves out sockets that are in no table because they were closed before it was read."""
    missing = {inode for inode in _socket_inodes(found) if inode not in sockets}
    if not missing or isinstance(found.descriptors, Unseen):
        return found
    later = replace(found, descriptors=descriptors_of(found.pid))
    closed = missing.difference(_socket_inodes(later))
    kept = tuple(e for e in found.descriptors if not (stat.S_ISSOCK(e.mode) and e.inode in closed))
    return replace(found, descriptors=kept)


def _far_ends(both: Iterable[Process], sockets: Mapping[int, Socket]) -> dict[int, tuple[int, ...]]:
    """These are the other ends of the processes' own sockets, as far as they are on this host."""
    by_ends: defaultdict[tuple[str, str], list[Socket]] = defaultdict(list)
    for each in sockets.values():
        if each.remote:
            by_ends[each.local, each.remote].append(each)
    ends: dict[int, tuple[int, ...]] = {}
    for inode in chain.from_iterable(map(_socket_inodes, both)):
        own = sockets.get(inode)
        if own is not None and own.peer:
            ends[inode] = (own.peer,)
        elif own is not None and own.remote:
            far = by_ends.get((own.remote, own.local), ())
            ends[inode] = tuple(each.inode for each in far if _may_meet(own, each))
    return ends


def _may_meet(one: Socket, other: Socket) -> bool:
    """This tells whether two ends may be one connection's: a loopback address is its namespace's own."""
    return one.network == other.network or not one.local.startswith(("127.", "[::1]"))


def _socket_inodes(found: Process) -> list[int]:
    if isinstance(found.descriptors, Unseen):
        return []
    return [each.inode for each in found.descriptors if stat.S_ISSOCK(each.mode)]


def _pipes(qemu: Process) -> Iterator[str]:
    """These are the machine's named pipes and terminals, as others have them open.

    A pipe without a name is inherited, by many as a rule, and no character device makes one.
    """
    if isinstance(qemu.descriptors, Unseen):
        return
    for each in qemu.descriptors:
        if each.terminal is not None:
            yield f"/dev/pts/{each.terminal}"
        elif stat.S_ISFIFO(each.mode) and not each.target.startswith("pipe:"):
            yield each.target


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
        path = _seen(pid, name)
        seen = opening(path)
        if seen is None:
            unseen.append(f"the socket {name} cannot be seen from here")
        else:
            found.setdefault(seen.path, seen)
    return tuple(found.values()), tuple(unseen)


def _seen(pid: int, name: str) -> Path:
    """This is a path of a process as it is reached from here."""
    with suppress(OSError):
        return (Path(f"/proc/{pid}/cwd").readlink() / name).resolve()
    return Path(name)


def _folders(qemu: Process, view: _View) -> Iterator[SharedFolder]:
    """These are the folders that QEMU has open (9p), or a virtiofsd that it is connected with."""
    holders = [(str(qemu), qemu.descriptors)]
    holders += [
        (f"{_SHARES_FOLDERS} (pid {pid})", descriptors_of(pid))
        for pid in sorted(view.owners_behind(qemu))
        if _SHARES_FOLDERS in view.crowd.names.get(pid, "")
    ]
    for holder, descriptors in holders:
        for each in () if isinstance(descriptors, Unseen) else descriptors:
            if stat.S_ISDIR(each.mode):
                yield SharedFolder(holder, each.target, each.device, each.inode)


def _broker(found: Process, qemu: Process, view: _View) -> Broker:
    own = [view.sockets[i] for i in _socket_inodes(found) if i in view.sockets]
    listening = tuple(each for each in own if each.listening)
    names = [each.local for each in listening if each.protocol == "unix"]
    openings, _ = _openings(found.pid, names)
    asked = admits_anybody(openings[0].path) if openings else Unseen("it has no Unix socket")
    members = view.owners_behind(found) | {found.pid} | _crowd_of(found, qemu)
    return Broker(
        process=found,
        config=read_config(found.pid, found.arguments),
        listening=listening,
        sockets=openings,
        anonymous=asked,
        members=frozenset(members - {qemu.pid}),
        links=_links(found),
    )


def _crowd_of(broker: Process, qemu: Process) -> set[int]:
    """These are the processes in a network namespace that is the bus's own."""
    shared = {qemu.network, inode_of_namespace(1), inode_of_namespace("self")}
    if broker.network in shared:
        return set()
    return {pid for pid in pids() if inode_of_namespace(pid) == broker.network}
