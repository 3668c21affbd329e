"""Who may open a path besides its owner and root: its own mode, and that of every folder on the way.

References: path_resolution(7), unix(7) (connecting needs the right to write to the socket's file).
"""

import grp
import os
import pwd
import stat
from pathlib import Path
from typing import Final

from qvmi.manager.confinement import is_reserved
from qvmi.manager.isolation.facts import BusPath, Opening

__all__ = ["bus_path", "opening", "reachable_by"]

_MAX_FOLDERS: Final = 128
"""Folders on the way to a file; a path has at most PATH_MAX (4096) bytes, and hardly ever 30."""


def opening(path: Path, *, shown: str | None = None) -> Opening | None:
    """This looks at who may open a file or connect to a socket; None where there is none.

    Args:
        path: as it is reached from here.
        shown: as it is told.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    others = reachable_by(path, status)
    mode = stat.S_IMODE(status.st_mode)
    return Opening(shown or str(path), status.st_uid, mode, others)


def reachable_by(path: Path, status: os.stat_result) -> str:
    """This names who else may reach and open it: a group, or everybody; empty for nobody."""
    if stat.S_ISSOCK(status.st_mode):
        everybody, group = stat.S_IWOTH, stat.S_IWGRP
    else:
        everybody, group = stat.S_IROTH | stat.S_IWOTH, stat.S_IRGRP | stat.S_IWGRP
    folders = _folders(path)
    if status.st_mode & everybody and all(each.st_mode & stat.S_IXOTH for each in folders):
        return "everybody"
    if not status.st_mode & group or not _has_other_members(status.st_gid, status.st_uid):
        return ""
    open_to_group = all(
        each.st_mode & stat.S_IXOTH
        or (each.st_gid == status.st_gid and each.st_mode & stat.S_IXGRP)
        for each in folders
    )
    return f"group {_group(status.st_gid)}" if open_to_group else ""


def bus_path(path: Path) -> BusPath:
    """This tells which folders a path of the bus lies in, and what it is itself."""
    on_the_way = frozenset((each.st_dev, each.st_ino) for each in _folders(path))
    try:
        status = path.stat()
    except OSError:
        return BusPath(str(path), on_the_way)
    own = (status.st_dev, status.st_ino)
    return BusPath(str(path), on_the_way | {own}, own)


def _folders(path: Path) -> list[os.stat_result]:
    """These are the folders on the way to a path, by way of no link; one that is closed to us ends it."""
    found: list[os.stat_result] = []
    try:
        found += (each.stat() for each in list(path.resolve().parents)[:_MAX_FOLDERS])
    except (OSError, RuntimeError):
        return found
    return found


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _has_other_members(gid: int, owner: int) -> bool:
    """This tells whether anybody but the owner and root is in a group, as far as this host knows."""
    try:
        named = {*grp.getgrgid(gid).gr_mem}
    except KeyError:
        # Nobody knows of whom it consists, unless a manager has reserved it for its codepacks.
        return not is_reserved(gid)
    users = [user for user in pwd.getpwall() if user.pw_gid == gid or user.pw_name in named]
    return any(user.pw_uid not in {0, owner} for user in users)
