"""The processes of this host, as ``/proc`` tells about them.

References: proc(5), unix(7), sock_diag(7), Linux ``net/unix/diag.c``.
"""

import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

__all__ = ["HostProcess", "host_process", "pids", "sockets_of", "who_has_sockets"]

_MAX_CMDLINE: Final = 2 << 20  # bytes; ARG_MAX
_MAX_PROCESSES: Final = 1 << 16
_MAX_FDS: Final = 1 << 18  # looked at in one search; 0.2 s of work


@dataclass(frozen=True, slots=True)
class HostProcess:
    """This is a process of the host.

    Args:
        pid: its number in our pid namespace.
        uid: its effective user.
        arguments: its command line with the program first; what is not UTF-8 as surrogates.
    """

    pid: int
    uid: int
    arguments: tuple[str, ...]

    @property
    def program(self) -> str:
        """This is the file name of the program; empty for kernel threads and zombies."""
        return os.path.basename(self.arguments[0]) if self.arguments else ""

    @property
    def is_qemu(self) -> bool:
        """This tells whether the program is a QEMU system emulator, by its name."""
        return self.program.startswith(("qemu-system-", "qemu-kvm", "kvm"))

    def __str__(self) -> str:
        return f"{self.program or 'process'} (pid {self.pid}, uid {self.uid})"


def host_process(pid: int) -> HostProcess | None:
    """This looks a process up; None when it has gone or may not be seen."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            cmdline = file.read(_MAX_CMDLINE)
        uid = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None
    arguments = cmdline.rstrip(b"\0").split(b"\0") if cmdline else []
    return HostProcess(pid, uid, tuple(map(os.fsdecode, arguments)))


def pids() -> Iterator[int]:
    """These are the numbers of all processes that can be seen."""
    with suppress(OSError):
        for _, name in zip(range(_MAX_PROCESSES), os.listdir("/proc"), strict=False):
            if name.isdecimal():
                yield int(name)


def sockets_of(pid: int) -> frozenset[int]:
    """These are the inodes of the sockets a process has open; empty where it may not be seen."""
    return frozenset(_socket_inodes(pid))


def who_has_sockets(inodes: Collection[int]) -> dict[int, HostProcess]:
    """This finds, for each socket inode, a process that has it open; what is not found is left out."""
