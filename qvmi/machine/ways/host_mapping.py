"""What a QEMU process of this host has mapped, by its own /proc files.

References: proc(5): /proc/pid/maps, /proc/pid/map_files, /proc/pid/fd.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

__all__ = ["HostMapping", "HostMaps", "opened_file"]

_LINE: Final = re.compile(
    rb"([0-9a-f]+)-([0-9a-f]+) (...)([sp]) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+) *(.*)"
)
_READ: Final = 64 << 10
"""Bytes asked for at once; the kernel gives about one page."""
_MAX_READS: Final = 4096
"""Of about 40 lines each; a QEMU with hundreds of threads has some 3,000 lines."""


@dataclass(frozen=True, slots=True)
class HostMapping:
    """This is one line of /proc/PID/maps.

    Args:
        start: first host virtual address.
        end: first host virtual address behind it.
        shared: whether writes reach the file.
        writable: whether the process may write there.
        offset: of ``start`` in the file, in bytes.
        device: number of the file's device, as ``os.makedev`` gives it.
        inode: of the file, 0 for none.
        path: as the kernel shows it.
    """

    start: int
    end: int
    shared: bool
    writable: bool
    offset: int
    device: int
    inode: int
    path: str


class HostMaps:
    """This is what one process has mapped, as read when it was first asked for.

    Args:
        pid: of the process.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid

    @cached_property
    def text(self) -> bytes:
        """This is the process's /proc/PID/maps.

        Raises:
            OSError: the process is gone, or belongs to somebody else.
        """
        with Path(f"/proc/{self.pid}/maps").open("rb", buffering=0) as maps:
            parts = [maps.read(_READ)]
            while parts[-1] and len(parts) < _MAX_READS:
                parts.append(maps.read(_READ))
        return b"".join(parts)

    def prefetch(self) -> None:
        """This reads it now, so that asking costs nothing later; an error comes when asked."""
        with suppress(OSError):
            _ = self.text

    def mappings(self) -> tuple[HostMapping, ...]:
        """This is all of it, by rising address; raises as :attr:`text`."""
        return tuple(_mappings(self.text.splitlines()))

    def share_file(self, path: Path, offset: int) -> bool:
        """This tells whether this very file is mapped shared, not another one of the same name.

        Args:
            path: of the file.
            offset: of a byte in it that must be mapped too.

        Raises:
            OSError: the file cannot be looked at, or as :attr:`text`.
        """
        status = path.stat()
        return any(
            mapping.shared
            and (mapping.device, mapping.inode) == (status.st_dev, status.st_ino)
            and mapping.offset <= offset < mapping.offset + mapping.end - mapping.start
            for mapping in _mappings(_lines_with(self.text, b" %d " % status.st_ino))
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


def _lines_with(text: bytes, word: bytes) -> Iterator[bytes]:
    """This iterates the lines that contain something, without looking at the others."""
    at = text.find(word)
    while at >= 0:
        end = text.find(b"\n", at)
        yield text[text.rfind(b"\n", 0, at) + 1 : end]
        at = text.find(word, end) if end >= 0 else -1


def _mappings(lines: Iterable[bytes]) -> Iterator[HostMapping]:
    for line in lines:
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        start, end, rights, kind, offset, major, minor, inode, path = match.groups()
        yield HostMapping(
            int(start, 16),
            int(end, 16),
            kind == b"s",
            b"w" in rights,
            int(offset, 16),
            os.makedev(int(major, 16), int(minor, 16)),
            int(inode),
            os.fsdecode(path),
        )
