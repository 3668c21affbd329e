"""A kernel that lies in its tables of sockets: a gap, and what descriptors lead to is seen as before."""

import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

import qvmi
from qvmi import Listing, Va
from qvmi.semantics.guest_os import Socket
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.symbols.layout import address, field_offset
from tests.guests.exotic_guests import exotic_guest
from tests.guests.lab import KERNELS, GuestConfig, Lab
from tests.guests.tampering import GuestRam, guest_ram
from tests.hostile.bounds import cpu_seconds

FEW_SECONDS: Final = 20.0
"""Of processor time: a bound, far from what any of these takes."""
NOWHERE: Final = 0x4141414141414140
HUGE: Final = 0x7FFFFFFF


@dataclass(frozen=True, slots=True)
class Den:
    """This is a guest that stands still, what was understood of it, and its memory to write to."""

    linux: LinuxGuest
    ram: GuestRam

    def offset(self, type_name: str, name: str) -> int:
        return field_offset(self.linux.kernel.symbols, type_name, name)

    def at(self, symbol: str) -> int:
        return address(self.linux.kernel.symbols, symbol)

    def word(self, va: int) -> int:
        return int.from_bytes(self.linux.kernel.space.read(Va(va), 8), "little")

    def sockets(self) -> Listing[Socket]:
        with cpu_seconds(FEW_SECONDS):
            return self.linux.sockets()

    def link(self, row: Socket) -> int:
        return row.address + self.offset("sock_common", "skc_node")


@pytest.fixture(scope="module", params=KERNELS)
def den(lab: Lab, request: pytest.FixtureRequest, profiles: Path) -> Iterator[Den]:
    with ExitStack() as stack:
        guest = exotic_guest(lab, stack, GuestConfig(request.param))
        guest.monitor.execute("stop")
        machine = stack.enter_context(qvmi.attach_sync(guest.qmp, cache=profiles))
        yield Den(machine.guest, stack.enter_context(guest_ram(guest)))


def _row(den: Den, **wanted: str | None) -> Socket:
    """This is the one socket that has these fields."""
    rows = den.sockets()
    return next(r for r in rows if all(getattr(r, name) == wanted[name] for name in wanted))


def _itself(den: Den, row: Socket) -> tuple[int, bytes]:
    return den.link(row), struct.pack("<Q", den.link(row))


def _nowhere(den: Den, row: Socket) -> tuple[int, bytes]:
    return den.link(row), struct.pack("<Q", NOWHERE)


def _first_netlink(den: Den) -> int:
    """This is the ``bucket_table`` of the first netlink protocol."""
    hashes = den.offset("netlink_table", "hash") + den.offset("rhashtable", "tbl")
    return den.word(den.word(den.at("nl_table")) + hashes)


LIES: Final[dict[str, Callable[[Den], tuple[int, bytes]]]] = {
    "a connection follows itself": lambda den: _itself(den, _row(den, local="127.0.0.1:5201")),
    "a request leads nowhere": lambda den: _nowhere(den, _row(den, state="SYN_RECV")),
    "who listens follows himself": lambda den: _itself(den, _row(den, local="0.0.0.0:5001")),
    "a datagram socket leads nowhere": lambda den: _nowhere(den, _row(den, local="0.0.0.0:5003")),
    "a Unix socket follows itself": lambda den: _itself(den, _row(den, local="@abstract")),
    "a packet socket follows itself": lambda den: _itself(den, _row(den, protocol="packet")),
    "connections without number": lambda den: (
        den.at("tcp_hashinfo") + den.offset("inet_hashinfo", "ehash_mask"),
        struct.pack("<I", HUGE),
    ),
    "datagram sockets nowhere": lambda den: (
        den.at("udp_table") + den.offset("udp_table", "hash"),
        struct.pack("<Q", NOWHERE),
    ),
    "a netlink table without end": lambda den: (
        _first_netlink(den) + den.offset("bucket_table", "size"),
        struct.pack("<I", HUGE),
    ),
    "netlink tables nowhere": lambda den: (den.at("nl_table"), struct.pack("<Q", NOWHERE)),
    "a network follows itself": lambda den: (
        den.at("init_net") + den.offset("net", "list"),
        struct.pack("<Q", den.at("init_net") + den.offset("net", "list")),
    ),
    "no list of networks": lambda den: (den.at("net_namespace_list"), struct.pack("<Q", NOWHERE)),
    "a socket of another": lambda den: (
        _row(den, protocol="netlink", pid=None).address + den.offset("sock", "sk_socket"),
        struct.pack("<Q", den.at("init_task")),
    ),
    "a socket of no network": lambda den: (
        _row(den, protocol="netlink", pid=None).address + den.offset("sock_common", "skc_net"),
        struct.pack("<Q", NOWHERE),
    ),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_table_that_lies_is_a_gap_and_hides_nothing_that_is_open(
    den: Den, lie: Callable[[Den], tuple[int, bytes]]
) -> None:
    before = den.sockets()
    assert not before.gaps
    at, data = lie(den)
    with den.ram.altered(den.linux.kernel.space.translate(Va(at)), data):
        listing = den.sockets()
    assert listing.gaps
    assert set(listing) <= set(before)
    assert all(row.pid is None for row in set(before) - set(listing))
    assert set(den.sockets()) == set(before)
