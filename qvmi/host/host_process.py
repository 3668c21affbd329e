"""The processes of this host, as ``/proc`` tells about them.

References: proc(5); ld.so(8) and musl's ``ldso/dynlink.c``, for a program that a loader was told to run.
"""

import os
import re
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

__all__ = ["HostProcess", "host_process", "pids", "runs_qemu", "socket_owners"]

_PROC: Final = Path("/proc")
_MAX_CMDLINE: Final = 2 << 20  # bytes; what execve takes (ARG_MAX)
_MAX_MAPS: Final = 16 << 20  # bytes; QEMU's has some hundred kilobytes
_QEMU: Final = ("qemu-system-", "qemu-kvm", "kvm")
_DELETED: Final = " (deleted)"
_MAX_PROCESSES: Final = 1 << 16
_MAX_FDS: Final = 1 << 16  # of one process
_SOCKET: Final = re.compile(r"socket:\[(\d+)\]")
_LOADER: Final = re.compile(r"ld(?:64|-linux[\w-]*|-musl-[\w-]+)?\.so(?:\.\d+)?")
_LOADER_VALUES: Final = frozenset({
    *("--argv0", "--audit", "--glibc-hwcaps-mask", "--glibc-hwcaps-prepend", "--inhibit-rpath"),
    *("--library-path", "--preload"),
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class HostProcess:
    """This is a process of this host.

    Args:
        pid: its number in our pid namespace.
        uid: the user it runs as.
        arguments: its command line, the program first, without a dynamic loader that it was started
            by; bytes that are not UTF-8 as surrogates.
    """

    pid: int
    uid: int
    arguments: tuple[str, ...]

    @property
    def program(self) -> str:
        """This is the program's file name; empty for a kernel thread or a zombie."""
        return Path(self.arguments[0]).name if self.arguments else ""

    @property
    def is_qemu(self) -> bool:
        """This tells whether the program has the name of a QEMU system emulator."""
        return self.program.startswith(_QEMU)

    def __str__(self) -> str:
        return f"{self.program or 'process'} (pid {self.pid})"


def host_process(pid: int) -> HostProcess | None:
    """This looks a process up; None when it has gone or cannot be seen."""
    folder = _PROC / str(pid)
    try:
        with (folder / "cmdline").open("rb") as file:
            cmdline = file.read(_MAX_CMDLINE)
        uid = folder.stat().st_uid
    except OSError:
        return None
    arguments = cmdline.removesuffix(b"\0").split(b"\0") if cmdline else []
    return HostProcess(pid, uid, _of_program([os.fsdecode(argument) for argument in arguments]))


def runs_qemu(pid: int) -> bool | None:
    """This tells whether a process runs a file with the name of a QEMU, whatever it calls itself.

    Returns:
        None where the file cannot be seen.
    """
    try:
        name = _file_name(str((_PROC / str(pid) / "exe").readlink()))
        if not _LOADER.fullmatch(name):
            return name.startswith(_QEMU)
        with (_PROC / str(pid) / "maps").open("rb") as file:  # the loader has mapped the program
            lines = file.read(_MAX_MAPS).decode(errors="surrogateescape").splitlines()
    except OSError:
        return None
    code = (line.split(maxsplit=5) for line in lines)
    names = (_file_name(fields[5]) for fields in code if len(fields) > 5 and "x" in fields[1])  # noqa: PLR2004 - the path
    return any(name.startswith(_QEMU) for name in names)


def _file_name(path: str) -> str:
    """This is a program's file name; packages that wrap a program put a dot before it."""
    return Path(path.removesuffix(_DELETED)).name.removeprefix(".")


def _of_program(arguments: list[str]) -> tuple[str, ...]:
    """This leaves out the loader of a program that brings its own libraries, in front of the program."""
    if not arguments or not _LOADER.fullmatch(Path(arguments[0]).name):
        return tuple(arguments)
    at = 1
    while at < len(arguments) and arguments[at].startswith("--"):
        at += 2 if arguments[at] in _LOADER_VALUES else 1
    return tuple(arguments[at:] or arguments)


def pids() -> list[int]:
    """These are the processes that can be seen, in rising order."""
    with suppress(OSError):
        folders = islice(_PROC.iterdir(), _MAX_PROCESSES)
        return sorted(int(folder.name) for folder in folders if folder.name.isdecimal())
    return []


def socket_owners(inodes: Collection[int], *, timeout_s: float) -> dict[int, int]:
    """This finds the processes that have these sockets open.

    Returns:
        A pid for each socket's inode that was found in time; other users' processes hide theirs.
    """
    deadline = time.monotonic() + timeout_s
    owners: dict[int, int] = {}
    for pid in pids():
        if len(owners) == len(inodes) or time.monotonic() > deadline:
            break
        for inode in _open_sockets(pid):
            if inode in inodes:
                owners.setdefault(inode, pid)
    return owners


def _open_sockets(pid: int) -> Iterator[int]:
    with suppress(OSError):
        for descriptor in islice((_PROC / str(pid) / "fd").iterdir(), _MAX_FDS):
            with suppress(OSError):
                match = _SOCKET.fullmatch(str(descriptor.readlink()))
                if match:
                    yield int(match[1])
