"""What /proc says of one process: its files, its network namespace, the memory it shares.

References: proc(5); Linux ``drivers/tty/pty.c`` (``ptm_show_fdinfo``: ``tty-index:``).
"""

import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

from qvmi.errors import QvmiError
from qvmi.host.host_process import host_process, runs_qemu
from qvmi.machine.ways.host_mapping import HostMapping, HostMaps
from qvmi.manager.isolation.facts import Descriptor, Opening, Process, SharedFile, Unseen
from qvmi.manager.isolation.permissions import opening
from qvmi.manager.isolation.tun_place import TunPlace, is_tun, tun_place

__all__ = ["arguments_of", "descriptors_of", "inode_of_namespace", "process", "started_at"]

MAX_DESCRIPTORS: Final = 1 << 16
"""Of one process: the kernel's own default limit (``fs.nr_open`` allows more to who asks for it)."""

_MAX_FDINFO: Final = 1 << 16  # bytes; an eventfd's or tun's has a hundred
_MAX_STAT: Final = 4096  # bytes of /proc/PID/stat
_FLAGS: Final = 6  # the 9th one, likewise
_EXITING: Final = (
    0x4  # PF_EXITING of include/linux/sched.h: its sockets close before it is a zombie
)
_STARTED: Final = 19  # the 22nd field of /proc/PID/stat, counted behind the name
_MAX_SHARED: Final = 4096  # files that one process has mapped
_SEES: Final = "run qvmi as the user of that process, or as root"
_NAMESPACE: Final = re.compile(r"net:\[(\d+)\]")
_TERMINAL: Final = re.compile(rb"^tty-index:\s*(\d+)", re.MULTILINE)
_TERMINALS: Final = frozenset({"/dev/ptmx", "/dev/pts/ptmx"})
_NUMBERED: Final = re.compile(r"socket:\[(\d+)\]")
_DELETED: Final = " (deleted)"


def process(pid: int, *, gone: QvmiError) -> Process:
    """This looks at a process.

    Args:
        pid: which one.
        gone: what to raise where there is none (any more).
    """
    begun = started_at(pid)
    known = host_process(pid)
    if known is None or begun is None:
        raise gone
    found = Process(
        pid,
        known.uid,
        known.program,
        known.arguments,
        inode_of_namespace(pid),
        descriptors_of(pid),
        _shared(pid),
        _is_qemu(pid),
    )
    if started_at(pid) != begun:
        raise gone
    return found


def _is_qemu(pid: int) -> bool | Unseen:
    runs = runs_qemu(pid)
    return Unseen(f"which program pid {pid} runs cannot be seen; {_SEES}") if runs is None else runs


def started_at(pid: int) -> int | None:
    """This is when a process began, in ticks; another one that got its number began at another time."""
    try:
        with Path(f"/proc/{pid}/stat").open("rb") as file:
            fields = file.read(_MAX_STAT).rpartition(b")")[2].split()
        state, flags, started = fields[0], int(fields[_FLAGS]), int(fields[_STARTED])
    except (OSError, IndexError, ValueError):
        return None
    return None if state in {b"Z", b"X"} or flags & _EXITING else started


def inode_of_namespace(pid: int | str) -> int | Unseen:
    """This is the number of a process's network namespace."""
    try:
        match = _NAMESPACE.fullmatch(str(Path(f"/proc/{pid}/ns/net").readlink()))
    except OSError as error:
        return Unseen(f"the network namespace of pid {pid}: {error.strerror}; {_SEES}")
    return int(match[1]) if match else Unseen(f"pid {pid} has no network namespace")


def arguments_of(pid: int) -> tuple[str, ...]:
    """This is a process's command line; empty where it has gone."""
    known = host_process(pid)
    return known.arguments if known else ()


def descriptors_of(pid: int) -> tuple[Descriptor, ...] | Unseen:
    """These are the open files of a process."""
    try:
        names = [*islice(Path(f"/proc/{pid}/fd").iterdir(), MAX_DESCRIPTORS)]
    except OSError as error:
        return Unseen(f"the open files of pid {pid}: {error.strerror}; {_SEES}")
    if len(names) == MAX_DESCRIPTORS:
        return Unseen(f"pid {pid} has {MAX_DESCRIPTORS} open files or more, too many to look at")
    return tuple(each for name in names for each in _descriptor(pid, name))


def _descriptor(pid: int, name: Path) -> Iterator[Descriptor]:
    """This looks at one open file, unless it was closed meanwhile."""
    with suppress(OSError):
        target = str(name.readlink())
        if match := _NUMBERED.fullmatch(target):
            yield Descriptor(int(name.name), target, stat.S_IFSOCK, 0, int(match[1]))
            return
        status = name.stat()
        number = int(name.name)
        place = tun_place(pid, number) if is_tun(target, status.st_rdev) else TunPlace()
        yield Descriptor(
            number,
            target,
            status.st_mode,
            status.st_dev,
            status.st_ino,
            interface=place.interface,
            terminal=_terminal(pid, number) if target in _TERMINALS else None,
            network=place.network,
            special=status.st_rdev,
        )


def _terminal(pid: int, number: int) -> int | None:
    with Path(f"/proc/{pid}/fdinfo/{number}").open("rb") as file:
        found = _TERMINAL.search(file.read(_MAX_FDINFO))
    return int(found[1]) if found else None


def _shared(pid: int) -> tuple[SharedFile, ...] | Unseen:
    try:
        mappings = HostMaps(pid).mappings()
    except OSError as error:
        return Unseen(f"the memory of pid {pid}: {error.strerror}; {_SEES}")
    files: dict[tuple[int, int], HostMapping] = {}
    writable: set[tuple[int, int]] = set()
    sizes: dict[tuple[int, int], int] = {}
    for mapping in mappings:
        key = mapping.device, mapping.inode
        if mapping.shared and mapping.inode and not mapping.path.startswith("anon_inode:"):
            files.setdefault(key, mapping)
            sizes[key] = sizes.get(key, 0) + mapping.end - mapping.start
            if mapping.writable:
                writable.add(key)
    if len(files) > _MAX_SHARED:
        return Unseen(f"pid {pid} has mapped {len(files)} files, too many to look at")
    return tuple(
        SharedFile(each.path, *key, sizes[key], key in writable, _opening(pid, each))
        for key, each in files.items()
    )


def _opening(pid: int, mapping: HostMapping) -> Opening | None:
    """This is who may open a file that is mapped; None where it has no name of its own."""
    if mapping.path.endswith(_DELETED) or not mapping.path.startswith("/"):
        return None
    seen = Path(f"/proc/{pid}/root{mapping.path}")
    for path in (Path(mapping.path), seen):
        with suppress(OSError):
            status = path.stat()
            if (status.st_dev, status.st_ino) == (mapping.device, mapping.inode):
                return opening(path, shown=mapping.path)
    return None
