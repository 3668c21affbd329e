"""A codepack that leaves a daemon behind, prints without end, and tries QEMU's own socket."""

import json
import os
import resource
import socket
import time
from collections.abc import Iterable
from pathlib import Path

from qvmi.codepacks.codepack import Finding
from qvmi.memory.physical import PhysicalMemory
from qvmi.policy import Grant
from qvmi.semantics.guest_os import GuestOS

__all__ = ["PRINTED", "Straying"]

PRINTED = 1 << 20
"""Bytes that it prints in each look; a pipe holds 64 KiB."""


class Straying:
    name = "straying"
    grants = frozenset({Grant.READ_MEMORY})

    def __init__(self, interval_s: float) -> None:
        self.interval_s = interval_s
        self._begun = False

    def inspect(self, guest: GuestOS, memory: PhysicalMemory) -> Iterable[Finding]:
        del memory
        guest.processes()
        if not self._begun:
            self._begun = True
            leave_daemon(Path.cwd())
        os.write(1, b"x" * (PRINTED - 1) + b"\n")
        return []


def leave_daemon(folder: Path) -> None:
    """Forks twice, in a session of its own, and notes who that is; it would go on for an hour."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            me = Path("/proc/self").readlink()
            with (folder / "daemons").open("a") as file:
                file.write(f"{me}\n")
            os.write(writing, b"x")
            time.sleep(3600)
        os._exit(0)
    os.read(reading, 1)


class Knocking:
    """It connects to whatever sockets it is told of, and notes what comes of it."""

    name = "knocking"
    grants = frozenset({Grant.READ_MEMORY})

    def __init__(self, interval_s: float) -> None:
        self.interval_s = interval_s

    def inspect(self, guest: GuestOS, memory: PhysicalMemory) -> Iterable[Finding]:
        del guest, memory
        told = {path: knocked(path) for path in Path("sockets").read_text().splitlines()}
        status = Path("/proc/self/status").read_text().splitlines()
        told |= {line.split(":")[0]: line.split()[1] for line in status if line.startswith("Cap")}
        told["limit"] = raised()
        Path("new").write_text(json.dumps(told))
        Path("new").replace("told")
        return []


def raised() -> str:
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except ValueError:
        return "kept"
    return "raised"


def knocked(path: str) -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(path)
        except OSError as error:
            return type(error).__name__
    return "connected"
