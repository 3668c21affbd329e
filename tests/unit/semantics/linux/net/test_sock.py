"""Sockets written by hand."""

import ipaddress

import pytest

from qvmi.addr import Va
from qvmi.errors import SymbolNotFound
from qvmi.semantics.guest_os import Socket
from qvmi.semantics.linux.fs.d_path import Paths
from qvmi.semantics.linux.net.sock import Sockets
from qvmi.semantics.linux.net.sock_common import Socks
from qvmi.semantics.linux.processes.fdtable import OpenFiles
from qvmi.semantics.linux.structures.list import ListWalk
from qvmi.semantics.linux.tasks.task import Tasks
from tests.synthetic.kernel_files import KernelFiles

NOWHERE = 0x4141_4141_4141_4141
UNIX, INET, INET6, NETLINK, PACKET = 1, 2, 10, 16, 17


def walk(memory: KernelFiles) -> ListWalk[Socket]:
    tasks = Tasks(memory.space, memory.symbols, ram_size=1 << 20)
    paths = Paths(memory.space, memory.symbols)
    files = OpenFiles(memory.space, memory.symbols, tasks=tasks, paths=paths)
    socks = Socks(memory.space, memory.symbols)
    sockets = Sockets(memory.space, memory.symbols, files=files, socks=socks)
    return sockets.of(tasks.processes().rows.values())


def only(memory: KernelFiles, sock: int) -> Socket:
    memory.open(memory.add_process(7), {3: memory.socket(sock)})
    (row,) = walk(memory).rows.values()
    return row


def test_a_tcp_socket_has_all_its_fields() -> None:
    memory = KernelFiles()
    sock = memory.sock(INET, state=1)
    memory.write(sock, bytes([10, 0, 0, 2, 10, 0, 0, 1]))
    memory.write(sock + 0xC, (443).to_bytes(2, "big") + (40000).to_bytes(2, "little"))
    assert only(memory, sock) == Socket(
        pid=7,
        fd=3,
        protocol="tcp",
        local="10.0.0.1:40000",
        remote="10.0.0.2:443",
        state="ESTABLISHED",
        namespace=99,
        inode=4711,
        address=Va(sock),
    )


def test_addresses_of_ipv6_are_in_brackets() -> None:
    memory = KernelFiles()
    sock = memory.sock(INET6)
    memory.write(sock + 0x28, ipaddress.ip_address("2001:db8::1").packed)
    memory.write(sock + 0x38, ipaddress.ip_address("::1").packed)
    row = only(memory, sock)
    assert (row.local, row.remote, row.protocol) == ("[::1]:0", "[2001:db8::1]:0", "tcp6")


@pytest.mark.parametrize(
    ("family", "kind", "protocol", "name"),
    [
        (INET, 1, 6, "tcp"),
        (INET, 2, 17, "udp"),
        (INET6, 2, 17, "udp6"),
        (INET, 3, 1, "raw"),
        (INET6, 3, 58, "raw6"),
        (INET, 2, 1, "icmp"),
        (INET, 1, 262, "mptcp"),
        (INET, 1, 200, "ip-200"),
        (UNIX, 1, 0, "unix"),
        (NETLINK, 3, 0, "netlink"),
        (PACKET, 3, 0, "packet"),
        (40, 1, 0, "family-40"),
    ],
)
def test_protocols_are_named_as_the_files_of_proc_net(
    family: int, kind: int, protocol: int, name: str
) -> None:
    memory = KernelFiles()
    assert only(memory, memory.sock(family, kind=kind, protocol=protocol)).protocol == name


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (b"/run/x.sock\0", "/run/x.sock"),
        (b"\0abstract", "@abstract"),
        (b"\0a\0b", "@a@b"),
        (b"", ""),
        (b"\xff\x1b\0", "\\xff\x1b"),
    ],
)
def test_a_unix_socket_is_bound_to_a_path_or_a_name(path: bytes, shown: str) -> None:
    memory = KernelFiles()
    sock = memory.sock(UNIX)
    memory.bind(sock, path)
    assert only(memory, sock).local == shown


def test_a_unix_socket_tells_whom_it_is_connected_to() -> None:
    memory = KernelFiles()
    sock, peer = memory.sock(UNIX, state=1), memory.sock(UNIX)
    memory.bind(peer, b"/run/server\0")
    memory.u64(memory.at(sock, "unix_sock", "peer"), peer)
    row = only(memory, sock)
    assert (row.local, row.remote) == ("", "/run/server")


def test_a_netlink_socket_has_its_port() -> None:
    memory = KernelFiles()
    sock = memory.sock(NETLINK)
    memory.u32(memory.at(sock, "netlink_sock", "portid"), 812)
    assert only(memory, sock).local == "812"


def test_other_files_are_no_sockets() -> None:
    memory = KernelFiles()
    special = memory.file(memory.dentry(b"s", memory.root), inode=memory.inode(0o140777))
    plain = memory.file(memory.dentry(b"f", memory.root))
    memory.open(memory.add_process(7), {3: special, 4: plain})
    found = walk(memory)
    assert (found.rows, found.gaps) == ({}, [])


def test_a_file_that_has_no_name_but_is_no_socket_is_no_gap_of_the_sockets() -> None:
    memory = KernelFiles()
    broken = memory.file(NOWHERE)
    memory.open(memory.add_process(7), {3: broken, 4: memory.socket(memory.sock(INET))})
    found = walk(memory)
    assert [row.fd for row in found.rows.values()] == [4]
    assert found.gaps == []


# ------------------------------------------------------------------------------ what cannot be


@pytest.mark.parametrize(
    ("type_name", "member"),
    [("socket", "file"), ("socket", "sk"), ("sock_common", "skc_net"), ("unix_sock", "addr")],
)
def test_a_socket_that_leads_nowhere_is_a_gap_and_hides_no_other(
    type_name: str, member: str
) -> None:
    memory = KernelFiles()
    socks = [memory.sock(UNIX) for _ in range(3)]
    files = [memory.socket(sock) for sock in socks]
    memory.open(memory.add_process(7), dict(enumerate(files)))
    socket = memory.get(memory.at(files[1], "file", "private_data"))
    holder = socket if type_name == "socket" else socks[1]
    memory.u64(memory.at(holder, type_name, member), NOWHERE)
    found = walk(memory)
    assert [row.fd for row in found.rows.values()] == [0, 2]
    assert [gap.address for gap in found.gaps] == [files[1]]


@pytest.mark.parametrize("state", [13, 255])
def test_a_state_that_none_has_is_a_gap(state: int) -> None:
    memory = KernelFiles()
    memory.open(memory.add_process(7), {3: memory.socket(memory.sock(INET, state=state))})
    found = walk(memory)
    assert not found.rows
    assert f"state {state}" in found.gaps[0].reason


@pytest.mark.parametrize("length", [0, 1, 111, 0xFFFF_FFFF])
def test_an_address_that_none_has_is_a_gap(length: int) -> None:
    memory = KernelFiles()
    sock = memory.sock(UNIX)
    memory.u32(memory.bind(sock, b"/x\0") + 4, length)
    memory.open(memory.add_process(7), {3: memory.socket(sock)})
    assert "address of" in walk(memory).gaps[0].reason


def test_a_socket_that_is_closed_meanwhile_is_none() -> None:
    memory = KernelFiles(mapped=False)
    sock = memory.sock(INET)
    file = memory.socket(sock)
    memory.open(memory.add_process(7), {3: file})

    def close(pa: int) -> None:
        if pa == sock + memory.to_pa:
            memory.ram.before_read = None
            memory.u64(memory.at(file, "file", "f_op"), 0)

    memory.ram.before_read = close
    found = walk(memory)
    assert (found.rows, found.gaps, found.retries) == ({}, [], 1)


def test_sockets_without_number_that_lie_are_given_up() -> None:
    memory = KernelFiles()
    file = memory.socket(NOWHERE)
    memory.open(memory.add_process(7), dict.fromkeys(range(2000), file), size=2048)
    found = walk(memory)
    assert 1000 < len(found.gaps) < 1010
    assert "given up" in found.gaps[-1].reason


def test_a_kernel_without_sockets_is_said_so() -> None:
    memory = KernelFiles()
    del memory.symbols.addresses["socket_file_ops"]
    with pytest.raises(SymbolNotFound, match="socket_file_ops"):
        walk(memory)
