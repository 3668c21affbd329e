"""The sockets that are seen are those of the guest's own /proc/net, each with its owner."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import qvmi
from qvmi.semantics.guest_os import Socket
from tests.asynchronous import asynchronous
from tests.guests.agreement import shown_name
from tests.guests.lab import Guest, NetSocket, Truth

FILES: Final = ("tcp", "tcp6", "udp", "udp6", "raw", "unix")
UNBOUND: Final = ("netlink", "0", "", "CLOSE")
"""The one netlink socket of the population: /proc/net shows those that are bound, and the kernel's."""

Row = tuple[str, str, str, str, int]
"""Protocol, local and remote address, state, inode."""


def _line(socket: NetSocket) -> Row:
    local = shown_name(socket.local.encode("latin-1"))
    return socket.protocol, local, socket.remote, socket.state, socket.inode


def _row(socket: Socket) -> Row:
    # /proc/net does not tell whose a Unix socket's peer is.
    remote = "" if socket.protocol == "unix" else socket.remote
    return socket.protocol, socket.local, remote, socket.state, socket.inode


def _true(truth: Truth) -> Iterator[Row]:
    for protocol in FILES:
        lines = truth.lines.get(f"/proc/net/{protocol}", ())
        yield from map(_line, NetSocket.of_lines(protocol, lines))


def _network(truth: Truth, name: str) -> int:
    """This is the number of the network namespace that a process is in."""
    (link,) = (one for one in truth.named(name).namespaces if one.startswith(b"net:"))
    return int(link.strip(b"net:[]"))


@asynchronous
async def test_equal_proc_net_with_their_owners(
    guest: Guest, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    truth = guest.settled_truth()
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        listing = machine.guest.sockets()
    assert not listing.gaps
    held = [row for row in listing if row.pid is not None]
    own = [row for row in held if row.namespace == _network(truth, "init")]
    bound = [row for row in own if row.protocol != "netlink"]
    assert sorted(map(_row, bound)) == sorted(_true(truth))
    assert [_row(row)[:-1] for row in own if row.protocol == "netlink"] == [UNBOUND]
    links: dict[tuple[int | None, int | None], str] = {
        key: one.target for key, one in guest.files().items()
    }
    assert all(links[row.pid, row.fd] == f"socket:[{row.inode}]" for row in held)
    proof_count(len(own))


@asynchronous
async def test_those_of_another_network_namespace_are_told_apart(
    guest: Guest, profiles: Path
) -> None:
    truth = guest.settled_truth()
    pid = truth.named("ns-init").pid
    lines = tuple(guest.run(f"cat /proc/{pid}/net/tcp").decode().splitlines())
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        rows = machine.guest.sockets().items
    held = (row for row in rows if row.pid is not None)
    inner = [row for row in held if row.namespace == _network(truth, "ns-init")]
    assert {_row(row) for row in inner} == set(map(_line, NetSocket.of_lines("tcp", lines)))
    assert {row.local for row in inner} == {"127.0.0.1:5100"}
    assert {row.pid for row in inner} >= {pid}


@asynchronous
async def test_a_unix_socket_tells_its_peer(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        rows = [row for row in machine.guest.sockets() if row.protocol == "unix"]
    assert [row.local for row in rows if row.remote == "/run/stream.sock"] == [""]
    assert "@abstract" in {row.local for row in rows}


@asynchronous
async def test_those_of_one_process_are_the_same_rows(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        every = machine.guest.sockets().items
        for process in machine.guest.processes():
            own = tuple(row for row in every if row.pid == process.pid)
            assert machine.guest.sockets(process).items == own
