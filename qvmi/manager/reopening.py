"""Whether a process that was given guest RAM for reading can get at it for writing, by trying to.

References: unix(7); Linux ``net/unix/af_unix.c`` (``unix_find_bsd``: rights come before the kind of socket).
"""

import errno
import os
import socket
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["ways_to_connect", "ways_to_write"]

_NOBODY: Final = ("127.0.0.1", 1)
_FOR_ALL: Final = 0o666


def ways_to_write(descriptors: Iterable[int], processes: Iterable[int]) -> tuple[str, ...]:
    """These are the ways that lead to writing guest RAM, tried by this process as it is now.

    Nothing is written. A mode that could be changed is changed back.

    Args:
        descriptors: of the RAM, open for reading.
        processes: that have it mapped or open for writing, such as QEMU.
    """
    found: list[str] = []
    for number in descriptors:
        link = f"/proc/self/fd/{number}"
        found += _tried(link, f"{link} opens for writing")
        with _open_to_all(number) as changed:
            if changed:
                found += _tried(link, f"the mode of {link} can be changed")
    for process in processes:
        memory = f"/proc/{process}/mem"
        found += _tried(memory, f"{memory} opens for writing")
    return tuple(found)


def ways_to_connect(paths: Iterable[str]) -> tuple[str, ...]:
    """These are the sockets that this process could connect to, as it is now.

    Nobody notices: QEMU serves one client, and whoever stood in its queue would be in the way of the next.
    A socket of another kind is refused only once the kernel has found that this process may connect.
    """
    found = []
    for path in paths:
        if not path.startswith("/"):
            found += [f"{path} can be connected to"] if _can_speak_tcp() else []
            continue
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as knocking:
            try:
                knocking.connect(path)
            except OSError as error:
                if error.errno != errno.EPROTOTYPE:
                    continue
            found.append(f"{path} can be connected to")
    return tuple(found)


def _can_speak_tcp() -> bool:
    """This tells whether this process may connect by TCP at all, by asking where nobody listens."""
    with socket.socket(socket.AF_INET) as knocking:
        try:
            knocking.connect(_NOBODY)
        except OSError as error:
            return error.errno != errno.EACCES
    return True


def _tried(path: str, way: str) -> list[str]:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return []
    return [way]


@contextmanager
def _open_to_all(number: int) -> Iterator[bool]:
    """This lets everybody write the file meanwhile, and tells whether that could be done."""
    before = stat.S_IMODE(os.fstat(number).st_mode)
    try:
        os.fchmod(number, _FOR_ALL)
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        os.fchmod(number, before)
