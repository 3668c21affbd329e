"""The files and sockets that QEMU's command line and character devices name, as they are reached from here.

References: qemu-system-x86_64(1): ``-fw_cfg``, ``-initrd``, ``-smbios`` and others hand the guest a file's
contents, and do not keep it open.
"""

import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

from qvmi.manager.isolation.facts import Machine, Unseen

__all__ = ["named_paths", "seen_from_here", "socket_ends"]

_MAX_NAMED: Final = 4096
"""Parts of a command line that are looked at; one that libvirt writes has some hundred."""
_PARTS: Final = re.compile(r"[=,:]")
_UNIX: Final = re.compile(r"(?:disconnected:)?unix:([^,]+)")


def named_paths(pid: int, arguments: Sequence[str]) -> frozenset[tuple[int, int]]:
    """These are device and inode of the files that exist among the arguments and their parts."""
    parts = (part for argument in arguments[1:] for part in (argument, *_PARTS.split(argument)))
    named = islice((part for part in parts if part and "\0" not in part), _MAX_NAMED)
    return frozenset(each for part in named for each in _file_at(seen_from_here(pid, part)))


def _file_at(path: Path) -> Iterator[tuple[int, int]]:
    with suppress(OSError):
        status = path.stat()
        if not stat.S_ISDIR(status.st_mode):
            yield status.st_dev, status.st_ino


def socket_ends(pid: int, said: Machine | Unseen) -> Mapping[str, str]:
    """These are the Unix sockets that character devices lead to, by the device's id, links followed."""
    if isinstance(said, Unseen):
        return {}
    matches = ((each.name, _UNIX.match(each.place)) for each in said.chardevs)
    return {name: str(seen_from_here(pid, match[1])) for name, match in matches if match}


def seen_from_here(pid: int, name: str) -> Path:
    """This is a path of a process as it is reached from here."""
    with suppress(OSError, RuntimeError):
        return (Path(f"/proc/{pid}/cwd").readlink() / name).resolve()
    return Path(name)
