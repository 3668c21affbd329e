"""What surrounds a machine and a broker on this host: their sockets, and who is at the other ends."""

import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Final, Self

from qvmi.manager.isolation.crowd import LAST_STANDARD, Crowd
from qvmi.manager.isolation.facts import Host, Process, Socket, Unseen
from qvmi.manager.isolation.namespaces import network_sockets, representatives, unix_sockets
from qvmi.manager.isolation.processes import descriptors_of, inode_of_namespace

__all__ = ["Surroundings", "socket_inodes"]

_MAX_ENTERED: Final = 64
"""Network namespaces that are entered to find a Unix socket, 30 ms each; the first two or three have it."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """This is what was seen of the whole host around a machine and a broker.

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
            _pipes(qemu),
            {(each.device, each.inode): each.path for each in files},
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
            taps=tuple(crowd.taps),
            unseen=(*self.unseen, *unseen),
        )

    def owners_behind(self, found: Process) -> set[int]:
        """These are the processes at the other ends of a process's sockets."""
        ends = chain.from_iterable(self.far_ends.get(i, ()) for i in socket_inodes(found))
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
    wanted = frozenset(chain.from_iterable(map(socket_inodes, both)))
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
    missing = {inode for inode in socket_inodes(found) if inode not in sockets}
    if not missing or isinstance(found.descriptors, Unseen):
        return found
    later = replace(found, descriptors=descriptors_of(found.pid))
    closed = missing.difference(socket_inodes(later))
    kept = tuple(e for e in found.descriptors if not (stat.S_ISSOCK(e.mode) and e.inode in closed))
    return replace(found, descriptors=kept)


def _far_ends(both: Iterable[Process], sockets: Mapping[int, Socket]) -> dict[int, tuple[int, ...]]:
    """These are the other ends of the processes' own sockets, as far as they are on this host."""
    by_ends: defaultdict[tuple[str, str], list[Socket]] = defaultdict(list)
    for each in sockets.values():
        if each.remote:
            by_ends[each.local, each.remote].append(each)
    ends: dict[int, tuple[int, ...]] = {}
    for inode in chain.from_iterable(map(socket_inodes, both)):
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


def socket_inodes(found: Process) -> list[int]:
    """These are the sockets that a process has open."""
    if isinstance(found.descriptors, Unseen):
        return []
    return [each.inode for each in found.descriptors if stat.S_ISSOCK(each.mode)]


def _pipes(qemu: Process) -> dict[str, bool]:
    """These are the machine's named pipes and terminals, as others have them open; which it opened itself.

    A pipe without a name is inherited, by many as a rule, and no character device makes one.
    """
    found: dict[str, bool] = {}
    for each in () if isinstance(qemu.descriptors, Unseen) else qemu.descriptors:
        if each.terminal is not None:
            found[f"/dev/pts/{each.terminal}"] = True
        elif stat.S_ISFIFO(each.mode) and not each.target.startswith("pipe:"):
            opened = each.number > LAST_STANDARD
            found[each.target] = found.get(each.target, False) or opened
    return found
