"""Sockets that no descriptor leads to are seen in the kernel's tables, of every network namespace.

The oracle is /proc/net as a process in each network reads it, those of the network that no process is
in among them (busybox's nsenter goes there by a descriptor).
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

import qvmi
from qvmi import Listing
from qvmi.semantics.guest_os import Socket
from tests.guests.agreement import shown_name
from tests.guests.exotic_guests import EXOTIC_CONFIGS, exotic_guest
from tests.guests.lab import Guest, Lab, NetSocket

FILES: Final = ("tcp", "tcp6", "udp", "udp6", "raw", "raw6", "unix", "packet", "netlink")
LOOKS: Final = 25
"""Connections in TIME_WAIT end at some moment: what is compared must be the same before and after."""
WAITED_PORTS: Final = (5401, 5402)
ELSEWHERE: Final = 99
"""The descriptor of the network that no process is in (tests/guests/lab/init/exotic.c)."""

Row = tuple[str, str, str, str, int]
"""Protocol, local and remote address, state, inode."""


@pytest.fixture(scope="module", params=EXOTIC_CONFIGS, ids=lambda config: str(config.kernel))
def exotic(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """This is a guest with sockets of every kind that nobody has open."""
    with ExitStack() as stack:
        yield exotic_guest(lab, stack, request.param)


@pytest.fixture(scope="module")
def machine(exotic: Guest, profiles: Path) -> Iterator[qvmi.SyncMachine]:
    with qvmi.attach_sync(exotic.qmp, cache=profiles) as machine:
        yield machine


def _line(socket: NetSocket) -> Row:
    local = shown_name(socket.local.encode("latin-1"))
    return socket.protocol, local, socket.remote, socket.state, socket.inode


def _row(socket: Socket) -> Row:
    # /proc/net does not tell whose a Unix socket's peer is.
    remote = "" if socket.protocol == "unix" else socket.remote
    return socket.protocol, socket.local, remote, socket.state, socket.inode


def _pids(guest: Guest) -> dict[bytes, int]:
    return {task.name: task.pid for task in guest.truth().processes}


def _networks(guest: Guest) -> dict[int, Counter[Row]]:
    """This is what each network's own /proc/net shows, by the network's number."""
    pids = _pids(guest)
    places = (
        "--net=/proc/1/ns/net",
        f"--net=/proc/{pids[b'ns-init']}/ns/net",
        f"--net=/proc/{pids[b'exotic']}/fd/{ELSEWHERE}",
    )
    loop = f"for f in {' '.join(FILES)}; do echo =$f; cat /proc/self/net/$f; done"
    found = {}
    for place in places:
        said = guest.run(f"nsenter {place} sh -c 'readlink /proc/self/ns/net; {loop}'")
        number, *files = said.decode("latin-1").split("\n=")
        rows = Counter(_line(one) for text in files for one in _sockets_of(text))
        found[int(number.strip("net:[]"))] = rows
    return found


def _sockets_of(text: str) -> tuple[NetSocket, ...]:
    protocol, *lines = text.rstrip("\n").split("\n")
    return NetSocket.of_all_lines(protocol, tuple(lines))


def _seen(listing: Listing[Socket]) -> dict[int, Counter[Row]]:
    """These are the sockets that are in a table, each once, by the network's number."""
    found: dict[int, Counter[Row]] = {}
    for row in {row.address: row for row in listing}.values():
        if not _is_unbound(row):
            found.setdefault(row.namespace, Counter())[_row(row)] += 1
    return found


def _is_unbound(row: Socket) -> bool:
    """This is in no table, and known by its descriptor alone: /proc/net does not show it."""
    unbound = {"udp": "0.0.0.0:0", "netlink": "0"}
    return row.pid is not None and row.local == unbound.get(row.protocol)


def _agreed(guest: Guest, machine: qvmi.SyncMachine) -> Listing[Socket]:
    """This is a listing that equals all of /proc/net, looked at between two equal answers of it."""
    before = _networks(guest)
    for _ in range(LOOKS):
        listing, after = machine.guest.sockets(), _networks(guest)
        if before == after:
            assert not listing.gaps
            assert _seen(listing) == after
            return listing
        before = after
    raise AssertionError(f"/proc/net was never the same twice in {LOOKS} looks")


def test_every_line_of_proc_net_is_seen_of_every_network(
    exotic: Guest, machine: qvmi.SyncMachine, proof_count: Callable[[int], None]
) -> None:
    exotic.ask(f"time wait {WAITED_PORTS[0]}")
    listing = _agreed(exotic, machine)
    families = Counter(row.protocol for row in listing if row.pid is None)
    assert families.keys() >= {"tcp", "udp", "unix", "netlink"}
    assert {row.protocol for row in listing} >= set(FILES)
    proof_count(len({row.address for row in listing}))


def test_what_waits_and_what_is_under_way_is_nobodys(
    exotic: Guest, machine: qvmi.SyncMachine
) -> None:
    exotic.ask(f"time wait {WAITED_PORTS[1]}")
    rows = machine.guest.sockets()
    unheld = {(row.protocol, row.local, row.state) for row in rows if row.pid is None}
    assert unheld >= {
        ("tcp", f"127.0.0.1:{WAITED_PORTS[1] + 35000}", "TIME_WAIT"),
        ("tcp", "127.0.0.1:5202", "SYN_RECV"),
        ("tcp", "127.0.0.1:5201", "ESTABLISHED"),
        ("tcp", "127.0.0.1:5302", "ESTABLISHED"),
        ("udp", "127.0.0.1:5203", "CLOSE"),
        ("udp", "127.0.0.1:5303", "CLOSE"),
        ("unix", "/run/unaccepted.sock", "ESTABLISHED"),
    }


def test_no_descriptor_leads_to_what_is_said_to_be_nobodys(
    exotic: Guest, machine: qvmi.SyncMachine
) -> None:
    links = {one.target for one in exotic.files().values()}
    rows = machine.guest.sockets().items
    assert not {f"socket:[{row.inode}]" for row in rows if row.pid is None} & links
    assert all(row.fd is None for row in rows if row.pid is None)
    held = {f"socket:[{row.inode}]" for row in rows if row.pid is not None}
    assert held == {link for link in links if link.startswith("socket:")}


def test_each_is_listed_once_for_each_descriptor(machine: qvmi.SyncMachine) -> None:
    rows = machine.guest.sockets().items
    keys = Counter((row.address, row.pid, row.fd) for row in rows)
    assert set(keys.values()) == {1}
    unheld = {row.address for row in rows if row.pid is None}
    assert not unheld & {row.address for row in rows if row.pid is not None}
