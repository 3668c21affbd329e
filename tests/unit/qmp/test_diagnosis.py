"""What is said when there is no session."""

import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from qvmi.errors import NotQmp, QmpBusy, SocketUnreachable
from qvmi.host.address import TcpAddress, UnixAddress
from qvmi.host.host_process import HostProcess
from qvmi.host.peer import Peer
from qvmi.qmp.diagnosis import queue_full, silence, verdict

SOCKET = UnixAddress("/run/q.sock")
QEMU = HostProcess(
    77,
    0,
    (
        "/usr/bin/qemu-system-x86_64",
        "-qmp",
        "unix:/run/q.sock,server=on",
        "-serial",
        "unix:/run/s,server",
    ),
)
NGINX = HostProcess(88, 33, ("nginx",))
LIBVIRTD = HostProcess(99, 0, ("/usr/sbin/libvirtd",))


@pytest.mark.parametrize(
    ("address", "peer", "kind", "told"),
    [
        (
            SOCKET,
            Peer(QEMU, waiting=True, holders=("virsh (pid 5)",)),
            QmpBusy,
            "held by virsh (pid 5)",
        ),
        (SOCKET, Peer(QEMU, waiting=True), QmpBusy, "it is stopped, or hangs"),
        (SOCKET, Peer(QEMU, waiting=False), QmpBusy, "it is stopped, or hangs"),
        (UnixAddress("/run/s"), Peer(QEMU, waiting=False), NotQmp, "its QMP is at /run/q.sock"),
        (
            UnixAddress("/run/s"),
            Peer(QEMU, waiting=True, holders=("socat (pid 5)",)),
            NotQmp,
            "character device",
        ),
        (SOCKET, Peer(NGINX, waiting=False), NotQmp, "nginx (pid 88)"),
        (SOCKET, Peer(NGINX, waiting=True, holders=("x (pid 5)",)), QmpBusy, "held by x (pid 5)"),
        (SOCKET, Peer(LIBVIRTD, waiting=False), QmpBusy, "libvirt:DOMAIN"),
        (
            SOCKET,
            Peer(QEMU, waiting=True, holders=("libvirtd (pid 9)",)),
            QmpBusy,
            "libvirt:DOMAIN",
        ),
        (
            TcpAddress("192.0.2.1", 4444),
            Peer(),
            QmpBusy,
            "another client holds it, or it is no QMP",
        ),
    ],
)
def test_silence_is_explained_by_who_is_there(
    address: UnixAddress | TcpAddress, peer: Peer, kind: type[Exception], told: str
) -> None:
    error = silence(address, peer)
    assert type(error) is kind
    assert told in error.reason


@pytest.mark.parametrize(
    "peer", [Peer(), Peer(QEMU, waiting=True), Peer(NGINX, waiting=False), Peer(LIBVIRTD)]
)
def test_nobody_is_sent_away_early_on_a_guess(peer: Peer) -> None:
    assert verdict(SOCKET, peer) is None


def test_a_queue_that_is_full_names_the_one_that_is_served(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with ExitStack() as stack:
        server = stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(str(path))
        server.listen(0)
        first, waiting = (stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2))
        first.connect(str(path))
        stack.enter_context(server.accept()[0])
        waiting.connect(str(path))
        error = queue_full(UnixAddress(str(path)))
    assert isinstance(error, QmpBusy)
    assert error.reason.startswith(("held by this very process", "held by another client"))


def test_a_host_that_never_answers_is_no_busy_one() -> None:
    assert isinstance(queue_full(TcpAddress("192.0.2.1", 1)), SocketUnreachable)
    assert isinstance(queue_full(SOCKET), QmpBusy)
