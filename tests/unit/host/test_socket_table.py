"""The kernel's socket tables, read of sockets that the test has made itself."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, chdir
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from qvmi.host.socket_table import UnixEnd, tcp_ends, unix_ends, unix_names


def inode(one: socket.socket) -> int:
    return os.fstat(one.fileno()).st_ino


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def listening(stack: ExitStack, family: int, place: str | tuple[str, int]) -> socket.socket:
    server = stack.enter_context(socket.socket(family))
    server.bind(place)
    server.listen(5)
    return server


def connected(stack: ExitStack, server: socket.socket) -> socket.socket:
    client = stack.enter_context(socket.socket(server.family))
    client.connect(server.getsockname())
    return client


def test_tells_an_accepted_unix_connection_from_a_waiting_one(stack: ExitStack) -> None:
    path = stack.enter_context(TemporaryDirectory(prefix="qvmi-")) + "/s"
    server = listening(stack, socket.AF_UNIX, path)
    first, second = connected(stack, server), connected(stack, server)
    accepted = stack.enter_context(server.accept()[0])
    ends = {end.inode: end for end in unix_ends()}
    assert ends[inode(server)] == UnixEnd(path, inode(server), None, listening=True)
    assert ends[inode(accepted)] == UnixEnd(path, inode(accepted), inode(first))
    assert ends[inode(first)].peer == inode(accepted)
    assert ends[inode(second)].peer == 0


def test_a_socket_is_found_by_the_file_it_was_bound_to_whatever_it_is_called(
    stack: ExitStack,
) -> None:
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="qvmi-")))
    with chdir(folder):
        server = listening(stack, socket.AF_UNIX, "s")
        other = listening(stack, socket.AF_UNIX, f"{folder}/t")
    (folder / "other").mkdir()
    stack.enter_context(socket.socket(socket.AF_UNIX)).bind(f"{folder}/other/s")
    found = [end.inode for end in unix_ends() if end.is_at(folder / "s")]
    assert found == [inode(server)]
    assert [end.inode for end in unix_ends() if end.is_at(folder / "t")] == [inode(other)]


def test_lists_unix_sockets_with_whether_a_client_is_served(stack: ExitStack) -> None:
    folder = stack.enter_context(TemporaryDirectory(prefix="qvmi- \\ü"))
    idle, waited, served, closed = (
        listening(stack, socket.AF_UNIX, f"{folder}/{name}") for name in "abcd"
    )
    connected(stack, waited)
    connected(stack, served)
    stack.enter_context(served.accept()[0])
    closed.close()
    names = unix_names()
    assert names[idle.getsockname()] is False
    assert names[waited.getsockname()] is False
    assert names[served.getsockname()] is True
    assert f"{folder}/d" not in names


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_tells_an_accepted_tcp_connection_from_a_waiting_one(
    stack: ExitStack, family: socket.AddressFamily
) -> None:
    server = listening(stack, family, ("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
    client = connected(stack, server)
    mine = next(end for end in tcp_ends() if end.inode == inode(client))
    assert any(end.listening and end.inode == inode(server) for end in tcp_ends())
    far = next(end for end in tcp_ends() if end.local == mine.remote and end.remote == mine.local)
    assert far.inode == 0
    accepted = stack.enter_context(server.accept()[0])
    far = next(end for end in tcp_ends() if end.local == mine.remote and end.remote == mine.local)
    assert far.inode == inode(accepted)


def test_an_ipv4_client_of_an_ipv6_server_is_one_connection(stack: ExitStack) -> None:
    server = stack.enter_context(socket.create_server(("::", 0), family=socket.AF_INET6,
                                                      dualstack_ipv6=True))  # fmt: skip
    client = stack.enter_context(socket.create_connection(("127.0.0.1", server.getsockname()[1])))
    accepted = stack.enter_context(server.accept()[0])
    ends = {end.inode: end for end in tcp_ends()}
    assert ends[inode(client)].remote == ends[inode(accepted)].local


def test_a_process_that_has_gone_has_no_tables() -> None:
    assert list(tcp_ends("0")) == []
    assert unix_names("0") == {}
    assert not Path("/proc/0").exists()
