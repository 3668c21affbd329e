"""The disks of this host that a machine has open, and what this host itself does with them.

References: proc(5), /proc/PID/mountinfo; Linux ``Documentation/ABI/testing/sysfs-block`` and
``sysfs-block-loop`` (``partition``, ``holders``, ``loop/backing_file``),
``Documentation/admin-guide/devices.txt``.
"""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import Final

from qvmi.host.host_process import pids
from qvmi.manager.isolation.facts import Descriptor, GivenDisk, Unseen

__all__ = ["Mounts", "given_disks", "mounts", "mounts_of"]

_BLOCK: Final = Path("/sys/dev/block")
_LOOPS: Final = "/sys/block"
_MAX_FAMILY: Final = 1024
"""Partitions of a disk, and what lies on them; a disk has at most 256 partitions."""
_MAX_LOOPS: Final = 4096
_MAX_MOUNTS: Final = 16 << 20
"""Bytes of a table; that of a host full of containers has some hundred kilobytes."""
_MAX_NAMESPACES: Final = 1024
_MAX_NUMBER: Final = 64  # bytes of a file in sysfs that holds a device number
_NETWORK_DISK: Final = 43
"""The major number of ``/dev/nbd*``."""
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")

Mounts = dict[int, set[str]]
"""Where each device is mounted."""


def given_disks(files: Iterable[Descriptor], mounted: Mounts) -> Iterator[GivenDisk]:
    """These are those among a process's open files.

    Args:
        files: all of them.
        mounted: by :func:`mounts`.
    """
    loops = list(_loops())
    for each in files:
        is_disk = stat.S_ISBLK(each.mode)
        own = (each.device, each.inode) if stat.S_ISREG(each.mode) else None
        first = (
            [each.special] if is_disk else [device for device, backing in loops if backing == own]
        )
        used = {device for device in _family(first) if device in mounted}
        if used or is_disk:
            places = sorted(set(chain.from_iterable(mounted[device] for device in used)))
            network = is_disk and os.major(each.special) == _NETWORK_DISK
            yield GivenDisk(each.number, each.target, tuple(places), frozenset(used), network)


def mounts() -> Mounts | Unseen:
    """This finds what is mounted, in any mount namespace that a process is in."""
    found: Mounts = {}
    seen: set[str] = set()
    for pid in pids():
        with suppress(OSError):
            space = str(Path(f"/proc/{pid}/ns/mnt").readlink())
            if space in seen:
                continue
            own = list(mounts_of(pid))
            if own:
                seen.add(space)
            for device, place in own:
                found.setdefault(device, set()).add(place)
        if len(seen) > _MAX_NAMESPACES:
            return Unseen(f"this host has more than {_MAX_NAMESPACES} mount namespaces")
    return found if seen else Unseen("no table of mounts can be read: run qvmi as root")


def mounts_of(pid: int) -> Iterator[tuple[int, str]]:
    """These are the mounts that a process sees: device and place; none where it has gone or hides them."""
    with suppress(OSError), Path(f"/proc/{pid}/mountinfo").open("rb") as file:
        yield from _mounted(file.read(_MAX_MOUNTS).decode(errors="surrogateescape"))


def _mounted(text: str) -> Iterator[tuple[int, str]]:
    for line in text.splitlines():
        own, _, rest = line.partition(" - ")
        fields, source = own.split(" "), rest.split(" ")
        if len(fields) < 5 or len(source) < 2:  # noqa: PLR2004 - what a line has by proc(5)
            continue
        place = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), fields[4])
        with suppress(ValueError):
            major, minor = map(int, fields[2].split(":"))
            yield os.makedev(major, minor), place
        # A file system of several disks has a device number of its own.
        if source[1].startswith("/dev/"):
            with suppress(OSError):
                yield Path(source[1]).stat().st_rdev, place


def _family(devices: Iterable[int]) -> set[int]:
    """These are disks, their partitions, and what the host has made of those."""
    found: set[int] = set()
    waiting = list(devices)
    while waiting and len(found) < _MAX_FAMILY:
        device = waiting.pop()
        if device not in found:
            found.add(device)
            waiting += _made_of(_BLOCK / f"{os.major(device)}:{os.minor(device)}")
    return found


def _made_of(folder: Path) -> Iterator[int]:
    with suppress(OSError):
        parts = [each for each in folder.iterdir() if (each / "partition").exists()]
        for each in islice(chain(parts, (folder / "holders").iterdir()), _MAX_FAMILY):
            with suppress(OSError, ValueError):
                yield _number(each / "dev")


def _loops() -> Iterator[tuple[int, tuple[int, int]]]:
    """These are the host's loop devices: number, and device and inode of the file behind each."""
    for folder in islice(Path(_LOOPS).glob("loop*"), _MAX_LOOPS):
        with suppress(OSError, ValueError):
            name = (folder / "loop" / "backing_file").read_text(errors="surrogateescape")
            backing = Path(name.removesuffix("\n")).stat()
            yield _number(folder / "dev"), (backing.st_dev, backing.st_ino)


def _number(path: Path) -> int:
    with path.open("rb") as file:
        major, minor = map(int, file.read(_MAX_NUMBER).split(b":"))
    return os.makedev(major, minor)
