"""Which network interface an open tun leads to, and the namespace that it is in: the one it was made in.

References: Linux ``drivers/net/tun.c`` (``tun_chr_show_fdinfo``: ``iff:``; TUNGETDEVNETNS, since 5.2);
pidfd_getfd(2); Linux ``Documentation/admin-guide/devices.txt`` for the number of ``/dev/net/tun``.
"""

import ctypes
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["TUN", "TUN_DEVICE", "TunPlace", "is_tun", "tun_place"]

TUN: Final = "/dev/net/tun"
TUN_DEVICE: Final = os.makedev(10, 200)

_MAX_FDINFO: Final = 1 << 16  # bytes; a tun's has a hundred
_INTERFACE: Final = re.compile(rb"^iff:\s*(\S+)", re.MULTILINE)
_PIDFD_GETFD: Final = 438  # the same on all architectures
_TUNGETDEVNETNS: Final = 0x54E3


@dataclass(frozen=True, slots=True)
class TunPlace:
    """This is where a tun leads.

    Args:
        interface: its name; empty for none.
        network: the network namespace that it is in; 0 where the kernel does not tell.
    """

    interface: str = ""
    network: int = 0


def is_tun(target: str, special: int) -> bool:
    """This tells whether an open file is a tun, whatever its device file is called."""
    return target == TUN or special == TUN_DEVICE


def tun_place(pid: int, number: int) -> TunPlace:
    """This asks the kernel about a tun that a process has open."""
    with suppress(OSError), Path(f"/proc/{pid}/fdinfo/{number}").open("rb") as file:
        found = _INTERFACE.search(file.read(_MAX_FDINFO))
        if found:
            return TunPlace(os.fsdecode(found[1]), next(_networks(pid, number), 0))
    return TunPlace()


def _networks(pid: int, number: int) -> Iterator[int]:
    """This is the namespace, where we may look at the descriptor ourselves."""
    with suppress(OSError), ExitStack() as stack:
        process = os.pidfd_open(pid)
        stack.callback(os.close, process)
        tun: int = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, process, number, 0)
        if tun >= 0:
            stack.callback(os.close, tun)
            space = fcntl.ioctl(tun, _TUNGETDEVNETNS)
            stack.callback(os.close, space)
            yield os.fstat(space).st_ino
