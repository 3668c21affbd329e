"""What keeps a codepack's process from writing guest RAM: chosen by what holds, not by what should.

The RAM is handed over open for reading. That alone is no bar: a process of the same user can open the
same file for writing through /proc/self/fd. Another uid cannot, where the file's mode forbids it; nor can
a process under Landlock, where the file lies in a folder.
"""

import os
import pwd
import socket
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qvmi.manager import landlock

__all__ = ["Confinement", "close_modes", "confinements", "is_reserved", "own_uids"]

_FIRST_UID: Final = 61_184
_LAST_UID: Final = 65_519
"""The range that systemd gives to users that exist while a service does; distributions leave it alone."""

_MARK: Final = "qvmi-uid-"
_PRIVATE: Final = 0o600
_MEMFD: Final = "/memfd:"


@dataclass(frozen=True, slots=True)
class Confinement:
    """This is one way to keep a process in its bounds.

    Args:
        name: for people.
        other_uid: whether it gets a uid of its own.
        landlock: whether it gives up writing files.
    """

    name: str
    other_uid: bool = False
    landlock: bool = False


def confinements() -> tuple[Confinement, ...]:
    """These are the ways that can be tried here, the strongest first; the last one keeps nothing."""
    root = os.geteuid() == 0
    locks = landlock.abi() > 0
    return (
        *((Confinement("another uid", other_uid=True),) if root else ()),
        *((Confinement("Landlock", landlock=True),) if locks else ()),
        Confinement("nothing"),
    )


def close_modes(descriptors: Iterable[int]) -> None:
    """This lets nobody but its owner open a memfd: it is made with a mode that lets everybody.

    A file with a name keeps its mode, which is its owner's business.
    """
    for number in descriptors:
        with suppress(OSError):
            if str(Path(f"/proc/self/fd/{number}").readlink()).startswith(_MEMFD):
                os.fchmod(number, stat.S_IMODE(os.fstat(number).st_mode) & _PRIVATE)


@contextmanager
def own_uids(count: int) -> Iterator[list[int]]:
    """This reserves uids that nobody on this host has, for as long as the block lasts.

    Two managers agree by sockets in the kernel's own name space, which end with them.
    """
    with ExitStack() as stack:
        found: list[int] = []
        used = set(_uids_in_use())
        for uid in range(_FIRST_UID, _LAST_UID + 1):
            if len(found) == count:
                break
            if uid not in used and _reserved(uid, stack):
                found.append(uid)
        yield found


def is_reserved(number: int) -> bool:
    """This tells whether a manager on this host has reserved an id; only root can give it to others."""
    try:
        names = Path("/proc/net/unix").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return False
    return f"@{_MARK}{number}" in names


def _reserved(uid: int, stack: ExitStack) -> bool:
    mark = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    try:
        mark.bind(f"\0{_MARK}{uid}")
    except OSError:
        return False
    return True


def _uids_in_use() -> Iterator[int]:
    """These are the uids that the user database knows, and those of running processes."""
    yield from (entry.pw_uid for entry in pwd.getpwall())
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with suppress(OSError):
                yield process.stat().st_uid
