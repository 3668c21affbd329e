"""What is said when there is no session."""

import errno
import os
import socket
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from qvmi.errors import NotQmp, QmpBusy, SocketUnreachable
from qvmi.host.address import TcpAddress, UnixAddress
from qvmi.host.host_process import HostProcess
from qvmi.host.peer import Peer
from qvmi.host.stream import unreachable
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


def refused(path: Path, number: int) -> str:
    error = unreachable(UnixAddress(str(path)), OSError(number, os.strerror(number)))
    assert isinstance(error, SocketUnreachable)
    assert error.target == str(path)
    return error.reason


def test_a_missing_socket_is_told_with_its_folder(tmp_path: Path) -> None:
    with TemporaryDirectory(prefix="qvmi-") as folder:
        assert "its folder exists" in refused(Path(folder) / "q", errno.ENOENT)
        assert "there is no folder" in refused(Path(folder) / "no" / "q", errno.ENOENT)
    assert tmp_path.exists()


def test_what_is_there_in_place_of_a_socket_is_told() -> None:
    with TemporaryDirectory(prefix="qvmi-") as folder:
        file = Path(folder) / "file"
        file.touch()
        assert refused(file, errno.ECONNREFUSED) == "is no socket but a file"
        assert refused(Path(folder), errno.ECONNREFUSED) == "is no socket but a folder"
        assert refused(Path("/dev/null"), errno.ECONNREFUSED) == "is no socket but a device or pipe"


def test_a_socket_that_was_left_behind_or_is_closed_to_us_is_told() -> None:
    with TemporaryDirectory(prefix="qvmi-") as folder, socket.socket(socket.AF_UNIX) as one:
        path = Path(folder) / "q"
        one.bind(str(path))
        path.chmod(0o600)
        assert "has ended" in refused(path, errno.ECONNREFUSED)
        told = refused(path, errno.EACCES)
        assert f"belongs to uid {os.getuid()}, mode 600" in told


def test_a_folder_that_is_closed_to_us_is_told() -> None:
    error = unreachable(UnixAddress("/proc/0/x/q"), OSError(errno.EACCES, "Permission denied"))
    assert f"closed to uid {os.geteuid()}" in error.reason


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


def test_a_host_that_never_answers_is_no_busy_one() -> None:
    assert isinstance(queue_full(TcpAddress("192.0.2.1", 1)), SocketUnreachable)
    assert isinstance(queue_full(SOCKET), QmpBusy)
