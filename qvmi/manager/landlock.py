"""Landlock: a process that gives up, for good, to write files outside of a few folders.

It is asked for by system calls, which have the same numbers on every architecture. What it does not
cover: memfds, which belong to no folder, modes of files, which their owner may still change, and sockets that
lie in folders. Newer kernels cover TCP, sockets without a path, and signals.

References: Linux Documentation/userspace-api/landlock.rst, include/uapi/linux/landlock.h; prctl(2).
"""

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from qvmi.errors import UsageError

__all__ = ["abi", "forbid_privileges", "forbid_writing"]

_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_VERSION: Final = 1
"""``LANDLOCK_CREATE_RULESET_VERSION``."""
_PATH_BENEATH: Final = 1
"""``LANDLOCK_RULE_PATH_BENEATH``."""
_NO_NEW_PRIVS: Final = 38
"""``PR_SET_NO_NEW_PRIVS``."""

_WRITE_FILE: Final = 1 << 1
_CHANGE_FOLDERS: Final = sum(1 << bit for bit in range(4, 13))
"""To make and to remove whatever can be made in a folder."""
_TRUNCATE: Final = 1 << 14
_TRUNCATE_ABI: Final = 3
_NET_ABI: Final = 4
_TCP: Final = 1 | 2
"""``LANDLOCK_ACCESS_NET_BIND_TCP`` and ``LANDLOCK_ACCESS_NET_CONNECT_TCP``."""
_SCOPE_ABI: Final = 6
_SCOPE: Final = 1 | 2
"""``LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET`` and ``LANDLOCK_SCOPE_SIGNAL``."""
_OF_FILES: Final = _WRITE_FILE | _TRUNCATE


def abi() -> int:
    """This is the version of Landlock that this kernel has; 0 for none."""
    found: int = _libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    return max(found, 0)


def forbid_privileges() -> None:
    """This keeps this process, and those that it starts, from gaining rights by what they execute.

    Raises:
        UsageError: the kernel refuses.
    """
    if _libc().prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise UsageError(f"prctl(PR_SET_NO_NEW_PRIVS): {_error()}")


def forbid_writing(*, but_below: Iterable[Path]) -> None:
    """This keeps this process, for good, from opening files for writing and changing folders.

    It also keeps it from tracing those that are not held to the same and, as far as the kernel can, from
    TCP, from sockets without a path that are others', and from sending others signals.

    Args:
        but_below: files and folders to which it does not apply, as far as they exist.

    Raises:
        UsageError: the kernel has no Landlock, or refuses.
    """
    forbidden = _WRITE_FILE | _CHANGE_FOLDERS
    if abi() >= _TRUNCATE_ABI:
        forbidden |= _TRUNCATE
    forbid_privileges()
    version = abi()
    attributes = struct.pack("=Q", forbidden)
    attributes += struct.pack("=Q", _TCP) if version >= _NET_ABI else b""
    attributes += struct.pack("=Q", _SCOPE) if version >= _SCOPE_ABI else b""
    ruleset = _called(
        "landlock_create_ruleset", _CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0
    )
    try:
        for path in but_below:
            _allow(ruleset, path, forbidden)
        _called("landlock_restrict_self", _RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, access: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not path.is_dir():
            access &= _OF_FILES
        rule = struct.pack("=Qi", access, descriptor)
        _called("landlock_add_rule", _ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
    finally:
        os.close(descriptor)


def _called(name: str, number: int, *arguments: object) -> int:
    result: int = _libc().syscall(number, *arguments)
    if result < 0:
        raise UsageError(f"{name}: {_error()}")
    return result


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _error() -> str:
    return os.strerror(ctypes.get_errno())
