"""One look at every process of this host: who is at the other end of what a machine has open.

References: proc(5): /proc/PID/fd and /proc/PID/maps.
"""

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

from qvmi.host.host_process import host_process, pids, runs_qemu
from qvmi.machine.ways.host_mapping import HostMaps
from qvmi.manager.isolation.facts import Sharer, TapHolder
from qvmi.manager.isolation.processes import MAX_DESCRIPTORS
from qvmi.manager.isolation.tun_place import TUN, tun_place

__all__ = ["LAST_STANDARD", "Crowd"]

_SOCKET: Final = "socket:["
_INIT: Final = Path("/proc/1")
_FLAGS: Final = re.compile(rb"^flags:\s*([0-7]+)", re.MULTILINE)
_MAX_FDINFO: Final = 4096  # bytes; a file's has some hundred
LAST_STANDARD: Final = 2
"""A program's first three files are its parent's: a log or a terminal, which many may share."""


class Crowd:
    """This is what all processes have to do with one machine and one broker.

    Args:
        sockets: inodes of the sockets whose owners are looked for.
        pipes: pipes and terminals whose owners are looked for, as ``/proc/PID/fd`` names them; and whether
            the machine has opened it: what it was only started with, as others were, is a log.
        files: device and inode of the files that the machine has mapped, with their paths.
        machine: the machine's pid, which is left out of all but the owners of sockets.

    Attributes:
        owners: who has a socket open, by inode.
        names: the programs of all that were found, by pid.
        sharers: who may write to one of the files, by mapping or descriptor.
        holders: who has one of the pipes open.
        taps: who has tuns and taps open.
        hidden: why not all processes could be looked at; empty where they could.
    """

    def __init__(
        self,
        sockets: Collection[int],
        pipes: Mapping[str, bool],
        files: Mapping[tuple[int, int], str],
        machine: int,
    ) -> None:
        self.owners: defaultdict[int, set[int]] = defaultdict(set)
        self.names: dict[int, str] = {}
        self.sharers: list[Sharer] = []
        self.holders: set[tuple[str, int]] = set()
        self.taps: list[TapHolder] = []
        self.hidden = ""
        self._sockets = frozenset(sockets)
        self._pipes = pipes
        self._files = files
        self._paths = frozenset(files.values())
        self._machine = machine

    def look(self) -> None:
        """This looks at each process; one that ends meanwhile has nothing open any more."""
        hidden = 0
        for pid in pids():
            try:
                self._look_at_files(pid)
                if pid != self._machine:
                    self._look_at_memory(pid)
            except PermissionError:
                # What root may not look at in init is its own affair: it has all else in its hands anyway.
                hidden += pid != 1 or os.geteuid() != 0
            except OSError:
                continue
        if not _INIT.exists():
            self.hidden = "/proc does not show the processes of other users"
        elif hidden:
            self.hidden = f"{hidden} processes of other users do not show what they have open"

    def _look_at_files(self, pid: int) -> None:
        for number, target in _open_files(pid):
            if target.startswith(_SOCKET):
                inode = int(target[len(_SOCKET) : -1])
                if inode in self._sockets:
                    self._name(pid)
                    self.owners[inode].add(pid)
            elif target == TUN:
                self._look_at_tap(pid, number)
            elif self._is_shared_pipe(number, target) and pid != self._machine:
                self._name(pid)
                self.holders.add((target, pid))
            elif target in self._paths and pid != self._machine:
                self._look_at_file(pid, number, target)

    def _look_at_tap(self, pid: int, number: int) -> None:
        place = tun_place(pid, number)
        known = host_process(pid)
        if place.interface and known:
            is_qemu = runs_qemu(pid) is True
            self.taps.append(TapHolder(pid, known.program, is_qemu, place.interface, place.network))

    def _is_shared_pipe(self, number: int, target: str) -> bool:
        opened = self._pipes.get(target)
        return opened is not None and (opened or number > LAST_STANDARD)

    def _look_at_file(self, pid: int, number: int, target: str) -> None:
        """This looks at a file that has the name of one of the machine's."""
        with suppress(OSError):
            status = Path(f"/proc/{pid}/fd/{number}").stat()
            if (status.st_dev, status.st_ino) in self._files and _is_writable(pid, number):
                self._share(pid, [target], "open for writing")

    def _look_at_memory(self, pid: int) -> None:
        if not self._files:
            return
        maps = HostMaps(pid)
        if not any(b" %d " % inode in maps.text for _, inode in self._files):
            return
        found = {
            (each.device, each.inode): each.path
            for each in maps.mappings()
            if each.shared and each.writable and (each.device, each.inode) in self._files
        }
        self._share(pid, found.values(), "mapped writable")

    def _share(self, pid: int, paths: Iterable[str], how: str) -> None:
        known = host_process(pid)
        for path in paths:
            is_qemu = runs_qemu(pid) is True
            sharer = Sharer(pid, known.program if known else "", is_qemu, path, how)
            if sharer not in self.sharers:
                self.sharers.append(sharer)

    def _name(self, pid: int) -> None:
        if pid not in self.names:
            known = host_process(pid)
            self.names[pid] = known.program if known else ""


def _is_writable(pid: int, number: int) -> bool:
    with Path(f"/proc/{pid}/fdinfo/{number}").open("rb") as file:
        flags = _FLAGS.search(file.read(_MAX_FDINFO))
    return flags is None or int(flags[1], 8) & os.O_ACCMODE != os.O_RDONLY


def _open_files(pid: int) -> Iterator[tuple[int, str]]:
    names: Sequence[Path] = [*islice(Path(f"/proc/{pid}/fd").iterdir(), MAX_DESCRIPTORS)]
    for name in names:
        with suppress(OSError):
            yield int(name.name), os.readlink(name)  # noqa: PTH115 - thousands: a Path takes longer
