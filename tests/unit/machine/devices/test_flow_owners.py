"""A flow's owner is who has its socket; one that lived through two looks without a socket has none."""

import pytest

from qvmi.addr import Va
from qvmi.machine.devices.flow_owners import FlowOwners
from qvmi.network.flows import FlowKey, FlowRecord
from qvmi.semantics.guest_os import Socket
from qvmi.testing import fake_process
from tests.hostile.bounds import cpu_seconds

CPU_S = 10.0
"""A hundred million comparisons take longer; two looks at each flow and socket, a fraction of a second."""

TCP = FlowKey("tcp", 4, "10.0.2.15", 40000, "192.0.2.7", 443)
UDP6 = FlowKey("udp", 6, "fd00::15", 5353, "2001:db8::7", 53)


def socket(
    local: str, remote: str = "", *, protocol: str = "tcp", pid: int | None = 7, at: int = 1
) -> Socket:
    return Socket(pid, 3, protocol, local, remote, "ESTABLISHED", 1, 1, Va(at))


def seen(key: FlowKey, *sockets: Socket) -> FlowOwners:
    owners = FlowOwners()
    owners.see([key], sockets, [fake_process(7, name="nc")], number=0, is_whole=True)
    return owners


@pytest.mark.parametrize(
    ("key", "its"),
    [
        (TCP, socket("10.0.2.15:40000", "192.0.2.7:443")),
        (TCP, socket("[::ffff:10.0.2.15]:40000", "[::ffff:192.0.2.7]:443", protocol="tcp6")),
        (TCP, socket("0.0.0.0:40000", "0.0.0.0:0")),
        (TCP, socket("[::]:40000", "[::]:0", protocol="tcp6")),
        (UDP6, socket("[fd00::15]:5353", "", protocol="udp6")),
        (UDP6, socket("[::]:5353", "[2001:db8::7]:53", protocol="udp6")),
    ],
)
def test_a_socket_for_the_ends_of_a_flow_has_it(key: FlowKey, its: Socket) -> None:
    owner = seen(key, its).of(key)
    assert owner is not None
    assert (owner.socket, owner.process) == (its, "nc")


@pytest.mark.parametrize(
    "other",
    [
        socket("10.0.2.15:40000", "192.0.2.8:443"),
        socket("10.0.2.15:40001", "192.0.2.7:443"),
        socket("10.0.2.16:40000", "192.0.2.7:443"),
        socket("10.0.2.15:40000", "192.0.2.7:443", protocol="udp"),
        socket("@path", "", protocol="unix"),
        socket("nonsense", "192.0.2.7:443"),
    ],
)
def test_other_sockets_have_it_not(other: Socket) -> None:
    assert seen(TCP, other).of(TCP) is None


def test_a_server_with_many_connections_at_one_port_takes_no_time_for_each_of_each() -> None:
    ends = [f"192.0.{number >> 8}.{number & 255}" for number in range(1, 10_001)]
    flows = [FlowKey("tcp", 4, "10.0.2.15", 80, end, 1) for end in ends]
    with cpu_seconds(CPU_S):
        owners = FlowOwners()
        owners.see(
            flows,
            [socket("10.0.2.15:80", f"{end}:2") for end in ends],
            [],
            number=0,
            is_whole=True,
        )
    assert all(owners.of(key) is None for key in flows)


def test_the_socket_for_both_ends_comes_before_one_that_listens() -> None:
    listening = socket("0.0.0.0:40000", "0.0.0.0:0", at=2)
    own = socket("10.0.2.15:40000", "192.0.2.7:443", at=3)
    owner = seen(TCP, listening, own).of(TCP)
    assert owner is not None
    assert owner.socket == own


def test_a_socket_of_the_kernels_gives_way_to_one_of_a_process() -> None:
    owners = seen(TCP, socket("10.0.2.15:40000", "192.0.2.7:443", pid=None))
    its = socket("10.0.2.15:40000", "192.0.2.7:443", at=2)
    owners.see([TCP], [its], [], number=1, is_whole=True)
    owner = owners.of(TCP)
    assert owner is not None
    assert owner.socket == its


@pytest.mark.parametrize(
    ("first", "last", "unowned"),
    [(0, 3, True), (0, 2, False), (1, 3, False), (4, 9, False), (2, 9, True)],
)
def test_only_what_lived_through_two_looks_is_nobodys(
    first: int, last: int, *, unowned: bool
) -> None:
    owners = FlowOwners()
    for number in range(5):
        owners.see([TCP], [], [], number=number, is_whole=True)
    assert owners.is_unowned(TCP, FlowRecord(lasting=(first, last))) is unowned


def test_looks_with_gaps_do_not_count() -> None:
    owners = FlowOwners()
    for number in range(5):
        owners.see([TCP], [], [], number=number, is_whole=number == 0)
    assert not owners.is_unowned(TCP, FlowRecord(lasting=(0, 9)))


def test_dhcp_is_let_be() -> None:
    owners = FlowOwners()
    dhcp = FlowKey("udp", 4, "0.0.0.0", 68, "255.255.255.255", 67)  # noqa: S104 - as on the wire
    for number in range(5):
        owners.see([dhcp], [], [], number=number, is_whole=True)
    assert not owners.is_unowned(dhcp, FlowRecord(lasting=(0, 9)))


def test_of_flows_that_are_forgotten_nothing_is_kept() -> None:
    owners = FlowOwners()
    its = [socket("10.0.2.15:40000", "192.0.2.7:443")]
    owners.see([TCP], its, [], number=0, is_whole=True)
    owners.see([TCP], [], [], number=1, is_whole=True)
    assert owners.of(TCP) is not None
    owners.see([UDP6], [], [], number=2, is_whole=True)
    assert owners.of(TCP) is None
