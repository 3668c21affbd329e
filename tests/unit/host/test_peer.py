"""Who is at the other end: servers and clients that the test has started itself."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryDirectory

import pytest

from qvmi.host.address import TcpAddress, UnixAddress
from qvmi.host.peer import Peer, clients_at, look_at_peer, peer_pid, tcp_is_listening

# A client in a process of its own: connects, says so, and stays until its standard input ends.
CLIENT = (
    "import socket, sys\n"
    "family, *place = eval(sys.argv[1])\n"
    "s = socket.socket(family)\n"
    "s.connect(place[0] if len(place) == 1 else tuple(place))\n"
    "print(flush=True)\n"
    "input()\n"
)


@contextmanager
def client_process(server: socket.socket) -> Iterator[int]:
    name = server.getsockname()
    place = (int(server.family), *([name] if isinstance(name, str) else name[:2]))
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", CLIENT, repr(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            yield child.pid
        finally:
            child.communicate(b"\n")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture(params=["unix", "tcp", "tcp6"])
def server(request: pytest.FixtureRequest, stack: ExitStack) -> socket.socket:
    if request.param == "unix":
        one = stack.enter_context(socket.socket(socket.AF_UNIX))
        one.bind(stack.enter_context(TemporaryDirectory(prefix="qvmi-")) + "/s")
    elif request.param == "tcp":
        one = stack.enter_context(socket.socket(socket.AF_INET))
        one.bind(("127.0.0.1", 0))
    else:
        one = stack.enter_context(socket.socket(socket.AF_INET6))
        one.bind(("::1", 0))
    one.listen(5)
    return one


def connected(stack: ExitStack, server: socket.socket) -> socket.socket:
    client = stack.enter_context(socket.socket(server.family))
    client.connect(server.getsockname())
    return client


def test_names_the_client_that_is_served_while_we_wait(
    stack: ExitStack, server: socket.socket
) -> None:
    holder = stack.enter_context(client_process(server))
    stack.enter_context(server.accept()[0])
    peer = look_at_peer(connected(stack, server))
    assert peer.waiting is True
    assert len(peer.holders) == 1
    assert f"(pid {holder})" in peer.holders[0]
    assert peer.server is not None
    assert peer.server.pid == os.getpid()


def test_others_in_the_queue_are_no_holders(stack: ExitStack, server: socket.socket) -> None:
    stack.enter_context(client_process(server))
    peer = look_at_peer(connected(stack, server))
    assert (peer.waiting, peer.holders) == (True, ())


def test_we_are_no_holder_ourselves(stack: ExitStack, server: socket.socket) -> None:
    ours = connected(stack, server)
    stack.enter_context(server.accept()[0])
    peer = look_at_peer(ours)
    assert (peer.waiting, peer.holders) == (False, ())


def address_of(server: socket.socket) -> UnixAddress | TcpAddress:
    name = server.getsockname()
    return UnixAddress(name) if isinstance(name, str) else TcpAddress(name[0], name[1])


def test_clients_that_are_served_are_found_without_connecting(
    stack: ExitStack, server: socket.socket
) -> None:
    assert clients_at(address_of(server)) == ()
    holder = stack.enter_context(client_process(server))
    assert clients_at(address_of(server)) == ()  # in the queue, and not served yet
    stack.enter_context(server.accept()[0])
    (told,) = clients_at(address_of(server))
    assert f"(pid {holder})" in told


def test_where_nobody_listens_nobody_is_served() -> None:
    assert clients_at(UnixAddress("/no/such/socket")) == ()
    assert clients_at(TcpAddress("192.0.2.1", 1)) == ()


def test_only_a_unix_connection_has_credentials(stack: ExitStack, server: socket.socket) -> None:
    expected = os.getpid() if server.family == socket.AF_UNIX else None
    assert peer_pid(connected(stack, server)) == expected


def test_a_connection_that_has_ended_tells_nothing(stack: ExitStack) -> None:
    one = stack.enter_context(socket.socket(socket.AF_UNIX))
    assert look_at_peer(one) == Peer()
    other = stack.enter_context(socket.socket())
    assert look_at_peer(other) == Peer()


def test_tells_whether_a_port_is_listened_on(stack: ExitStack) -> None:
    one = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    port = one.getsockname()[1]
    assert tcp_is_listening(port)
    one.close()
    assert not tcp_is_listening(port)
