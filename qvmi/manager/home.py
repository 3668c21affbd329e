"""The folders in which a manager keeps what must outlive it: alerts, and the outboxes of codepacks.

Each codepack has a folder that only it may enter. What lies beside it is the manager's, and what a
codepack is to read of it, such as profiles of kernels, it may read and not change.
"""

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import platformdirs

from qvmi.errors import QvmiError, UsageError
from qvmi.machine.machine import Machine
from qvmi.symbols.profile import ProfileCache

__all__ = ["Home", "default_state_folder", "share_socket"]

_PACKS: Final = "packs"
_OF_ROOT: Final = Path("/var/lib/qvmi")
MAX_ENTRIES: Final = 1024
"""Files in a codepack's folder: its outbox takes three, and each costs the manager time at each start."""
_PASSABLE: Final = 0o711
_PRIVATE: Final = 0o700
_READABLE: Final = 0o755
_SHARED_FOLDER: Final = 0o2710
"""Its group may pass through it, and owns what is made in it."""
_SHARED_SOCKET: Final = 0o660


def default_state_folder() -> Path:
    """This is where state is kept: of root where other users' processes can reach it too."""
    return _OF_ROOT if os.geteuid() == 0 else Path(platformdirs.user_state_dir("qvmi"))


class Home:
    """This is the folder of one machine's manager.

    Args:
        state: the folder of all.
        vm: the machine's name on the bus.

    Raises:
        UsageError: it cannot be made.
    """

    def __init__(self, state: Path, vm: str) -> None:
        self._state = state
        self.folder = state / vm
        try:
            for folder in (state, self.folder, self._packs):
                folder.mkdir(mode=_PASSABLE, parents=True, exist_ok=True)
            self.profiles.mkdir(mode=_READABLE, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"{self.folder}: cannot be made ({error.strerror}); see --state"
            ) from error

    @property
    def alerts(self) -> Path:
        """This is the database of the alerts that were taken in."""
        return self.folder / "alerts.db"

    @property
    def profiles(self) -> Path:
        """This is the folder of profiles that every codepack may read."""
        return self.folder / "profiles"

    @property
    def _packs(self) -> Path:
        return self.folder / _PACKS

    def take_back(self, uids: Iterable[int | None]) -> None:
        """This takes the folders that codepacks had as uids that are others' now, of every machine's.

        Who is given such a uid could enter them: read what they keep, and send alerts in their names.

        Args:
            uids: those that nobody has yet.

        Raises:
            UsageError: one cannot be taken.
        """
        given = frozenset(uids) - {None, 0}
        try:
            for folder in self._state.glob(f"*/{_PACKS}/*") if given else ():
                if folder.lstat().st_uid in given:
                    os.chown(folder, os.geteuid(), os.getegid(), follow_symlinks=False)
                    folder.chmod(_PRIVATE)
        except OSError as error:
            raise UsageError(f"{self._state}: cannot be used: {error}") from error

    def of_pack(
        self, name: str, uid: int | None, gid: int | None, *, contents: bool = True
    ) -> Path:
        """This makes the folder of a codepack, and gives it to a user, who alone may enter it.

        Args:
            name: the codepack's.
            uid: the user; None for who this is.
            gid: the group; None for that of who this is.
            contents: whether what lies in it is given to the user, too.

        Raises:
            UsageError: it cannot be made, or the codepack has put too much there.
        """
        folder = self._packs / name
        owner = os.geteuid() if uid is None else uid
        group = os.getegid() if gid is None else gid
        try:
            folder.mkdir(mode=_PRIVATE, exist_ok=True)
            os.chown(folder, owner, group, follow_symlinks=False)
            folder.chmod(_PRIVATE)  # a codepack could have locked itself out for good
            if contents:
                _give_all(folder, owner, group)
        except OSError as error:
            raise UsageError(f"{folder}: cannot be made: {error.strerror}") from error
        return folder

    def note_profile(self, machine: Machine) -> None:
        """This keeps what is known of the guest's kernel where codepacks find it; else they look anew."""
        with suppress(QvmiError):
            kernel = machine.guest.kernel
            if kernel.profile is not None:
                path = ProfileCache(self.profiles).save(kernel.profile, kernel.image.start)
                path.chmod(stat.S_IMODE(path.stat().st_mode) | 0o044)


def _give_all(folder: Path, owner: int, group: int) -> None:
    with os.scandir(folder) as entries:
        for count, entry in enumerate(entries):
            if count >= MAX_ENTRIES:
                raise UsageError(
                    f"{folder} has more than {MAX_ENTRIES} files, which its codepack has made: remove them"
                )
            _give(Path(entry), owner, group)


def _give(path: Path, owner: int, group: int) -> None:
    """This gives a file in a codepack's folder to a user, but not what a link of the codepack's leads to.

    Where the kernel lets everybody link to any file (``fs.protected_hardlinks``), a hard link may be one to
    whatever file of the host's.
    """
    held = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(held)
        if stat.S_ISDIR(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_nlink == 1):
            os.chown(f"/proc/self/fd/{held}", owner, group)
    finally:
        os.close(held)


def share_socket(path: Path, gid: int) -> None:
    """This lets a group reach a socket in a private folder, and those that take its place later.

    Raises:
        UsageError: that cannot be done.
    """
    try:
        os.chown(path.parent, -1, gid)
        path.parent.chmod(_SHARED_FOLDER)
        os.chown(path, -1, gid)
        path.chmod(_SHARED_SOCKET)
    except OSError as error:
        raise UsageError(f"{path}: cannot be shared with codepacks: {error}") from error
