"""The folders that a guest looks into, by 9p, virtiofs or slirp's own servers, with what is mounted there."""

import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from qvmi.manager.isolation.facts import Descriptor, SharedFolder, Unseen
from qvmi.manager.isolation.given_disks import mounts_of
from qvmi.manager.isolation.monitor_facts import network_options
from qvmi.manager.isolation.named_paths import seen_from_here
from qvmi.manager.isolation.processes import descriptors_of
from qvmi.manager.isolation.surroundings import Surroundings

__all__ = ["shared_folders"]

_SHARERS: Final = ("virtiofsd", "virtfs-proxy-helper")
_MAX_MOUNTS: Final = 4096
"""Mounts below a folder that are looked at; a host full of containers has some thousand in all."""


@dataclass(frozen=True, slots=True)
class _Holder:
    """This is a process that shows folders to a guest.

    Args:
        pid: its number.
        shown: its name and number, in words.
        descriptors: its open files.
    """

    pid: int
    shown: str
    descriptors: tuple[Descriptor, ...] | Unseen


def shared_folders(view: Surroundings) -> Iterator[SharedFolder]:
    """These are those that QEMU, or a program that it is connected with, has open; and what slirp serves."""
    qemu = view.qemu
    holders = [_Holder(qemu.pid, str(qemu), qemu.descriptors)]
    holders += [
        _Holder(pid, f"{view.crowd.names[pid]} (pid {pid})", descriptors_of(pid))
        for pid in sorted(view.owners_behind(qemu))
        if view.crowd.names.get(pid, "").startswith(_SHARERS)
    ]
    for holder in holders:
        shown = f"open in {holder.shown}"
        for each in () if isinstance(holder.descriptors, Unseen) else holder.descriptors:
            if stat.S_ISDIR(each.mode):
                yield SharedFolder(shown, each.target, each.device, each.inode)
                yield from _mounted_in(holder.pid, each.target, shown)
    for option in network_options(qemu.arguments[1:]):
        for server, name in option.folders:
            path = seen_from_here(qemu.pid, name)
            shown = f"served by {server} of {option.name or option.kind} of {qemu}"
            yield from _folder(qemu.pid, str(path), shown)
            yield from _mounted_in(qemu.pid, str(path), shown)


def _mounted_in(pid: int, folder: str, shown: str) -> Iterator[SharedFolder]:
    """These are folders and files that are mounted below one: the guest looks into those, too."""
    root = folder.rstrip("/") + "/"
    below = (place for _, place in mounts_of(pid) if place.startswith(root))
    for place in islice(below, _MAX_MOUNTS):
        yield from _folder(pid, place, f"mounted in {folder}, {shown}")


def _folder(pid: int, path: str, shown: str) -> Iterator[SharedFolder]:
    """This is a folder as a process sees it, which may be in a mount namespace of its own."""
    with suppress(OSError):
        status = Path(f"/proc/{pid}/root{path}").stat()
        yield SharedFolder(shown, path, status.st_dev, status.st_ino)
