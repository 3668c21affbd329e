"""What a QEMU process of this host has mapped, by its own /proc files.

References: proc(5): /proc/pid/maps, /proc/pid/map_files, /proc/pid/fd.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["HostMapping", "opened_file", "read_mappings", "shares_file"]

_LINE: Final = re.compile(
    rb"([0-9a-f]+)-([0-9a-f]+) (...)([sp]) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+) *(.*)"
)
_MAX_MAPS: Final = 16 << 20
"""Bytes; a QEMU with hundreds of threads has some 3,000 lines of 100 bytes."""


@dataclass(frozen=True, slots=True)
class HostMapping:
    """This is one line of /proc/PID/maps.

    Args:
        start: first host virtual address.
        end: first host virtual address behind it.
        shared: whether writes reach the file.
        offset: of ``start`` in the file, in bytes.
        device: number of the file's device, as ``os.makedev`` gives it.
        inode: of the file, 0 for none.
        path: as the kernel shows it.
    """

    start: int
    end: int
    shared: bool
    offset: int
    device: int
    inode: int
    path: str


def read_mappings(pid: int) -> tuple[HostMapping, ...]:
    """This reads what a process has mapped, by rising address.

    Raises:
        OSError: the process is gone, or belongs to somebody else.
    """
    return tuple(_mappings(_read_maps(pid).splitlines()))


def shares_file(pid: int, path: Path) -> bool:
    """This tells whether a process shares this very file, not another one of the same name.

    Raises:
        OSError: the file cannot be looked at, or the process is gone or somebody else's.
    """
    status = path.stat()
    inode = b" %d " % status.st_ino
    candidates = [line for line in _read_maps(pid).splitlines() if inode in line]
    return any(
        mapping.shared and (mapping.device, mapping.inode) == (status.st_dev, status.st_ino)
        for mapping in _mappings(candidates)
    )


def opened_file(pid: int, mapping: HostMapping) -> Path | None:
    """This is a path by which the file behind a mapping can be opened; None where there is none.

    A memfd, and a file that was deleted or lies in another mount namespace, has no path of its
    own, but the process still holds it.
    """
    candidates = [
        Path(f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}"),
        *_descriptors(pid),
        Path(mapping.path),
    ]
    for candidate in candidates:
        try:
            status = candidate.stat()
        except OSError:
            continue
        if (status.st_dev, status.st_ino) == (mapping.device, mapping.inode):
            return candidate
    return None


def _descriptors(pid: int) -> Iterator[Path]:
    try:
        yield from Path(f"/proc/{pid}/fd").iterdir()
    except OSError:
        return


def _read_maps(pid: int) -> bytes:
    with Path(f"/proc/{pid}/maps").open("rb") as maps:
        return maps.read(_MAX_MAPS)


def _mappings(lines: Sequence[bytes]) -> Iterator[HostMapping]:
    for line in lines:
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        start, end, _, kind, offset, major, minor, inode, path = match.groups()
        yield HostMapping(
            int(start, 16),
            int(end, 16),
            kind == b"s",
            int(offset, 16),
            os.makedev(int(major, 16), int(minor, 16)),
            int(inode),
            os.fsdecode(path),
        )
