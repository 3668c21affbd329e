"""The sockets by which others than the manager could hold the guest, by the kernel's tables."""

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qvmi.errors import UsageError
from qvmi.host.address import UnixAddress, parse_socket_address
from qvmi.manager.isolation.facts import Unseen
from qvmi.manager.isolation.namespaces import unix_sockets
from qvmi.manager.isolation.processes import descriptors_of, inode_of_namespace

__all__ = ["QemuSockets", "qemu_sockets"]


@dataclass(frozen=True, slots=True)
class QemuSockets:
    """These are the sockets on which a QEMU listens.

    Args:
        places: absolute paths; and ``HOST:PORT`` where it was attached to by TCP.
        unseen: why it may have others; empty where all of its Unix sockets were seen.
    """

    places: tuple[str, ...]
    unseen: str = ""


def qemu_sockets(pid: int | None, address: str) -> QemuSockets:
    """This finds a QEMU's Unix sockets: the monitors', the gdbstub's and all others.

    Args:
        pid: QEMU's; None where that is not known.
        address: how it was attached to, which counts also where QEMU hides the rest.
    """
    places = dict.fromkeys(_attached_to(address))
    found = Unseen("which process it is nobody tells") if pid is None else _listening(pid)
    if isinstance(found, Unseen):
        return QemuSockets(tuple(places), found.reason)
    return QemuSockets(tuple(places | dict.fromkeys(found)))


def _attached_to(address: str) -> Iterator[str]:
    try:
        known = parse_socket_address(address)
    except UsageError:  # the name of a domain, say
        return
    yield str(Path(known.path).absolute()) if isinstance(known, UnixAddress) else str(known)


def _listening(pid: int) -> tuple[str, ...] | Unseen:
    """These are paths of a process's sockets, in whatever network namespace it is: files are everybody's."""
    files, network = descriptors_of(pid), inode_of_namespace(pid)
    if isinstance(files, Unseen):
        return files
    sockets = network if isinstance(network, Unseen) else unix_sockets(pid, network)
    if isinstance(sockets, Unseen):
        return sockets
    try:
        folder = Path(f"/proc/{pid}/cwd").readlink()
    except OSError as error:
        return Unseen(f"the folder that pid {pid} is in: {error.strerror}")
    own = {each.inode for each in files if stat.S_ISSOCK(each.mode)}
    names = (each.local for each in sockets if each.listening and each.inode in own)
    return tuple(str(folder / name) for name in names if name and not name.startswith("\0"))
