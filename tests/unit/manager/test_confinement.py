"""Uids that a manager reserves for its codepacks, and who could take them away from it."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from qvmi.errors import UsageError
from qvmi.manager import confinement
from qvmi.manager.confinement import is_reserved, own_uids

RESERVED_BY_SYSTEMD = range(61184, 65520)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a process a uid")

# Becomes nobody by itself: as such it need not be able to reach this Python.
TAKER = """
import fcntl, os, pathlib, resource, socket, sys
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
taken = []
for uid in range(61184, 65520):
    name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    name.bind(f"\\0qvmi-uid-{uid}")
    taken.append(name)
refused = 0
for file in [*pathlib.Path(sys.argv[1]).iterdir(), pathlib.Path(sys.argv[1], "61190")]:
    try:
        taken.append(file.open("a+"))
        fcntl.flock(taken[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        refused += 1
print(len(taken), refused, flush=True)
sys.stdin.read()
"""
OTHER_MANAGER = """
import sys
from pathlib import Path
from qvmi.manager import confinement
confinement.UIDS = Path(sys.argv[1])
with confinement.own_uids(2) as uids:
    print(*uids, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """This is where uids are reserved; below pytest's own folders nobody but root gets at all."""
    with tempfile.TemporaryDirectory(prefix="qvmi-uids-") as place:
        Path(place).chmod(0o755)
        monkeypatch.setattr(confinement, "UIDS", Path(place) / "uids")
        yield Path(place) / "uids"


def started(program: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def first_line(process: subprocess.Popen[str]) -> list[int]:
    assert process.stdout is not None
    return [int(word) for word in process.stdout.readline().split()]


def test_a_codepack_takes_no_uid_away_from_the_managers_to_come(folder: Path) -> None:
    with own_uids(2) as before, started(TAKER, folder) as taker:
        taken, refused = first_line(taker)
        assert (taken, refused) == (len(RESERVED_BY_SYSTEMD), 3)
        with own_uids(3) as uids:
            assert len(uids) == 3
            assert {*uids} <= {*RESERVED_BY_SYSTEMD} - {*before}
        taker.communicate()


def test_two_managers_have_different_uids_and_those_of_a_killed_one_are_free_again(
    folder: Path,
) -> None:
    with started(OTHER_MANAGER, folder) as other:
        others = first_line(other)
        with own_uids(2) as uids:
            assert len({*uids, *others}) == 4
            assert all(map(is_reserved, (*uids, *others)))
        assert not any(map(is_reserved, uids))
        other.send_signal(signal.SIGKILL)
        other.communicate()
    assert not any(map(is_reserved, others))
    with own_uids(2) as again:
        assert again == others


@pytest.mark.parametrize("mode", [0o757, 0o775])
def test_a_folder_that_others_may_write_to_is_refused(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(UsageError, match="root's"), own_uids(1):
        raise AssertionError("it was taken")


def test_a_folder_that_cannot_be_made_is_told_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.touch()
    with pytest.raises(UsageError, match="uids: no uids can be reserved"), own_uids(1):
        raise AssertionError("it was taken")
    monkeypatch.setattr(confinement, "UIDS", Path("/proc/uids"))
    with pytest.raises(UsageError, match="/proc/uids"), own_uids(1):
        raise AssertionError("it was taken")
