"""Why a socket cannot be connected to, in words that help."""

import errno
import os
import socket
from pathlib import Path
from tempfile import TemporaryDirectory

from qvmi.errors import SocketUnreachable
from qvmi.host.address import UnixAddress
from qvmi.host.stream import unreachable


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
