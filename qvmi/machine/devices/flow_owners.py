"""Whose flows are: the sockets that looks at the guest have shown, and which flows had none.

A flow whose own packets were read before a look and still after it was alive all through that look: then the
kernel had a socket for it, unless somebody has hidden it, or sends by another way. What was not alive so long
says nothing.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Final

from qvmi.network.flows import FlowKey, FlowRecord
from qvmi.semantics.guest_os import Process, Socket

__all__ = ["LEAST_LOOKS", "FlowOwners", "Owner"]

_NEEDED_LOOKS: Final = 2
"""Looks that a flow must have lived through without a socket before it is said to have none."""
LEAST_LOOKS: Final = 3 * _NEEDED_LOOKS
"""Looks that a watching must have for whoever wants to know of flows without a socket: those, the two
behind them that show that it still lived, and some for a flow that begins later than the watching."""
_STATELESS: Final = frozenset({(68, 67), (67, 68)})
"""Ports of DHCP over IPv4, whose clients send by sockets for whole packets, without a socket of UDP."""


@dataclass(frozen=True, slots=True)
class Owner:
    """This is whose a flow is.

    Args:
        socket: that it has.
        process: the name of the process that has it open; empty where none has.
    """

    socket: Socket
    process: str


class FlowOwners:
    """This gathers the owners of flows, look by look."""

    def __init__(self) -> None:
        self._found: dict[FlowKey, Owner] = {}
        self._whole: list[int] = []

    def see(
        self,
        flows: Iterable[FlowKey],
        sockets: Iterable[Socket],
        processes: Iterable[Process],
        *,
        number: int,
        is_whole: bool,
    ) -> None:
        """This takes in a look.

        Args:
            flows: that are known.
            sockets: that the look has shown.
            processes: likewise.
            number: of the round that the look is the end of.
            is_whole: whether what the look does not show is not there.
        """
        if is_whole:
            self._whole.append(number)
        names = {process.pid: process.name for process in processes}
        by_place = _by_place(sockets)
        before, self._found = self._found, {}  # what is known of no flow any more is forgotten
        for key in flows:
            known = before.get(key)
            if known is not None:
                self._found[key] = known
                if known.socket.pid is not None:
                    continue
            socket = _socket_of(key, by_place)
            if socket is not None:
                name = names.get(socket.pid, "") if socket.pid is not None else ""
                self._found[key] = Owner(socket, name)

    def of(self, key: FlowKey) -> Owner | None:
        """This is the owner of a flow; None where none was seen."""
        return self._found.get(key)

    def is_unowned(self, key: FlowKey, record: FlowRecord) -> bool:
        """This tells whether a flow lived long enough for a socket to be seen, and none was.

        What is read in the round behind a look may have passed while it was taken; what is read in the
        one behind that has not.
        """
        if record.lasting is None:
            return False
        first, last = record.lasting
        lived = bisect_right(self._whole, last - 2) - bisect_left(self._whole, first)
        ports = key.local_port, key.remote_port
        return key not in self._found and lived >= _NEEDED_LOOKS and ports not in _STATELESS


End = tuple[str, int]
_Place = tuple[str, int, str, End | None]
"""Protocol and port of sockets, their address, "" for any, and the other end, None for nobody yet."""


def _by_place(sockets: Iterable[Socket]) -> dict[_Place, Socket]:
    """These are the sockets by where they are; of several in one place one that a process has open.

    A guest can have as many flows and sockets at one port as it likes: each flow is looked up.
    """
    found: dict[_Place, Socket] = {}
    for socket in sockets:
        protocol = socket.protocol.removesuffix("6")
        local = _end(socket.local) if protocol in {"tcp", "udp"} else None
        if local is None:
            continue
        remote = _end(socket.remote)
        place = protocol, local[1], local[0], remote if remote and remote[1] else None
        if place not in found or found[place].pid is None:
            found[place] = socket
    return found


def _socket_of(key: FlowKey, sockets: Mapping[_Place, Socket]) -> Socket | None:
    """This is the socket of a flow: the one for its two ends before one for any other end."""
    for remote in ((key.remote, key.remote_port), None):
        fitting = [
            socket
            for address in (key.local, "")
            if (socket := sockets.get((key.protocol, key.local_port, address, remote))) is not None
        ]
        if fitting:
            return next((socket for socket in fitting if socket.pid is not None), fitting[0])
    return None


def _end(text: str) -> End | None:
    """This is an end of a socket; None for what is none of the internet's."""
    address, _, port = text.rpartition(":")
    try:
        its = ip_address(address.strip("[]"))
        number = int(port) if port != "*" else 0
    except ValueError:
        return None
    if isinstance(its, IPv6Address) and its.ipv4_mapped is not None:
        its = its.ipv4_mapped
    return "" if its.is_unspecified else str(its), number
