"""What keeps a codepack's process from writing guest RAM: chosen by what holds, not by what should.

The RAM is handed over open for reading. That alone is no bar: a process of the same user can open the
same file for writing through /proc/self/fd. Another uid cannot, where the file's mode forbids it; nor can
a process under Landlock, where the file lies in a folder.
"""

import errno
import fcntl
import os
import pwd
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from qvmi.errors import UsageError
from qvmi.manager import landlock

__all__ = ["Confinement", "close_modes", "confinements", "is_reserved", "own_uids"]

_FIRST_UID: Final = 61_184
_LAST_UID: Final = 65_519
"""The range that systemd gives to users that exist while a service does; distributions leave it alone."""

UIDS: Final = Path("/run/qvmi/uids")
"""A file for each uid that a manager had, locked by that which has it. Names of sockets in the kernel's own
name space would need no folder, but whoever likes can take all of those: a codepack, too."""

_READABLE: Final = 0o755
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
    """This reserves uids that nobody on this host has, for as long as the block lasts; only root can.

    Two managers agree by locks on files that nobody else may open, which end with them.

    Raises:
        UsageError: the folder of those files cannot be used, or others may write to it.
    """
    with ExitStack() as stack:
        try:
            found = list(_reserve(count, stack))
        except OSError as error:
            raise UsageError(f"{UIDS}: no uids can be reserved: {error.strerror}") from error
        yield found


def is_reserved(number: int) -> bool:
    """This tells whether a manager on this host has reserved an id, as far as this user may know.

    Only root can give it to others, and only root can know.
    """
    try:
        held = os.open(UIDS / str(number), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(held)
    return False


def _reserve(count: int, stack: ExitStack) -> Iterator[int]:
    for folder in (UIDS.parent, UIDS):
        folder.mkdir(mode=_READABLE, parents=True, exist_ok=True)
        found = folder.lstat()
        if found.st_uid != 0 or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o022:
            raise UsageError(f"{folder}: must be a folder of root's that nobody else may write to")
    used = set(_uids_in_use())
    free = (uid for uid in range(_FIRST_UID, _LAST_UID + 1) if uid not in used)
    yield from islice((uid for uid in free if _reserved(uid, stack)), count)


def _reserved(uid: int, stack: ExitStack) -> bool:
    held = os.open(UIDS / str(uid), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, _PRIVATE)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(held)
        if error.errno != errno.EWOULDBLOCK:
            raise
        return False
    stack.callback(os.close, held)
    return True


def _uids_in_use() -> Iterator[int]:
    """These are the uids that the user database knows, and those of running processes."""
    yield from (entry.pw_uid for entry in pwd.getpwall())
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with suppress(OSError):
                yield process.stat().st_uid
