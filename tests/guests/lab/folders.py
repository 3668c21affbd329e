"""Private folders of running guests, on tmpfs when it has room; swept when their owner is dead."""

import os
import re
import shutil
import tempfile
from pathlib import Path

from tests.guests.lab.errors import LabError

__all__ = ["make_folder", "sweep_dead_folders"]

MEMORY_FOLDER = Path("/dev/shm")  # noqa: S108 - made private below: mkdtemp gives 0700
SPARE_BYTES = 1 << 30
"""Left free on tmpfs for whoever else uses it."""

SOCKET_PATH_LIMIT = 40
"""A Unix socket's path is at most 107 bytes (unix(7)); the folder must leave room for a name."""

OWNER = re.compile(r"(?P<pid>\d+)-\d+")


def _parents() -> tuple[Path, ...]:
    return MEMORY_FOLDER, Path(tempfile.gettempdir())


def make_folder(size: int) -> Path:
    """This is a new folder, for this user's eyes only, on a file system with that many bytes free.

    Raises:
        LabError: neither tmpfs nor the disk has the room.
    """
    sweep_dead_folders()
    for parent in _parents():
        if len(str(parent)) > SOCKET_PATH_LIMIT or not os.access(parent, os.W_OK):
            continue
        if shutil.disk_usage(parent).free >= size + SPARE_BYTES:
            return Path(tempfile.mkdtemp(prefix=f"{_prefix()}{_owner(os.getpid())}-", dir=parent))
    raise LabError(
        f"no room for {size >> 20} MiB of guest memory in {' or '.join(map(str, _parents()))}",
        fix="free some, or set TMPDIR to a short path on a larger disk",
    )


def sweep_dead_folders() -> None:
    """This removes what guests left behind whose keeper and test were both killed."""
    for parent in _parents():
        for folder in parent.glob(f"{_prefix()}*"):
            named = OWNER.match(folder.name.removeprefix(_prefix()))
            if named and named[0] != _owner(int(named["pid"])):
                shutil.rmtree(folder, ignore_errors=True)


def _prefix() -> str:
    """Name the user and the pid namespace; containers may share the folder, pids mean nothing there."""
    namespace = Path("/proc/self/ns/pid").stat().st_ino
    return f"qvmi-lab-{os.getuid()}-{namespace}-"


def _owner(pid: int) -> str:
    """Name a process for all time: its pid and when it started; a pid alone is used again."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return f"{pid}-gone"
    return f"{pid}-{fields[19]}"
