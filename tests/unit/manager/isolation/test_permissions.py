"""Who may open a file or connect to a socket is what the system says when somebody tries."""

import os
import pwd
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from qvmi.manager.isolation.facts import BusPath
from qvmi.manager.isolation.permissions import bus_path, opening

CONNECTS = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
NOBODY = 65534

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="another user can be played by root alone"
)


@pytest.fixture(name="place")
def folder_that_others_may_enter() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="qvmi-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def others_can(*command: str) -> bool:
    """This tells whether a user without rights can do that."""
    alone = ("setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups")
    done = subprocess.run((*alone, *command), capture_output=True, check=False)
    return done.returncode == 0


@needs_root
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o604, 0o602, 0o644, 0o660, 0o666])
@pytest.mark.parametrize("folder_mode", [0o700, 0o710, 0o711, 0o755])
def test_a_file_is_open_to_others_where_others_can_open_it(
    place: Path, mode: int, folder_mode: int
) -> None:
    folder = place / "folder"
    folder.mkdir(exist_ok=True)
    file = folder / "file"
    file.touch()
    file.chmod(mode)
    folder.chmod(folder_mode)
    found = opening(file)
    assert found is not None
    reads = others_can("cat", str(file))
    writes = others_can("tee", "-a", str(file))
    assert (found.others == "everybody") == (reads or writes)
    assert (found.mode, found.owner) == (mode, 0)


@needs_root
@pytest.mark.parametrize("mode", [0o700, 0o755, 0o702, 0o777])
@pytest.mark.parametrize("folder_mode", [0o700, 0o755])
def test_a_socket_is_open_to_others_where_others_can_connect(
    place: Path, mode: int, folder_mode: int
) -> None:
    folder = place / "folder"
    folder.mkdir(exist_ok=True)
    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        path.chmod(mode)
        folder.chmod(folder_mode)
        found = opening(path)
        assert found is not None
        connects = others_can("/usr/bin/python3", "-I", "-S", "-c", CONNECTS, str(path))
        assert (found.others == "everybody") == connects


@needs_root
def test_a_group_with_other_members_counts_as_others(place: Path) -> None:
    user = next(each for each in pwd.getpwall() if each.pw_uid not in {0, NOBODY})
    file = place / "file"
    file.touch()
    os.chown(file, 0, user.pw_gid)
    file.chmod(0o660)
    found = opening(file)
    assert found is not None
    assert found.others.startswith("group ")


def test_a_file_of_ones_own_group_is_closed_to_others(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    file.chmod(0o600)
    found = opening(file, shown="as told")
    assert found is not None
    assert (found.others, found.path) == ("", "as told")


def test_what_is_not_there_has_no_opening(tmp_path: Path) -> None:
    assert opening(tmp_path / "nothing") is None


def test_a_path_of_the_bus_lies_in_each_folder_on_its_way(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    found = bus_path(inner / "s")
    for folder in (inner, inner.parent, tmp_path, Path("/")):
        status = folder.stat()
        assert (status.st_dev, status.st_ino) in found.folders
    assert isinstance(found, BusPath)
