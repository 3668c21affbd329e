"""The Unix sockets on which a QEMU listens, by the kernel's tables: who connects there holds the guest."""

from pathlib import Path

from qvmi.errors import UsageError
from qvmi.host.address import UnixAddress, parse_socket_address
from qvmi.host.host_process import open_sockets
from qvmi.host.socket_table import unix_ends

__all__ = ["qemu_sockets"]


def qemu_sockets(pid: int | None, address: str) -> tuple[str, ...]:
    """These are the paths of its sockets, the monitors', the gdbstub's and all others.

    Args:
        pid: QEMU's; None where that is not known.
        address: how it was attached to, which counts also where QEMU is another user's, who hides the rest.

    Returns:
        Absolute paths; and ``HOST:PORT`` where it was attached to by TCP.
    """
    found: dict[str, None] = {}
    try:
        known = parse_socket_address(address)
    except UsageError:  # the name of a domain, say
        known = None
    if isinstance(known, UnixAddress):
        found[str(Path(known.path).absolute())] = None
    elif known is not None:
        found[str(known)] = None
    if pid is not None:
        inodes = set(open_sockets(pid))
        try:
            folder = Path(f"/proc/{pid}/cwd").readlink()
            names = [end.name for end in unix_ends() if end.listening and end.inode in inodes]
        except OSError:
            names = []
        for name in names:
            if name and not name.startswith("\0"):
                found[str(folder / name)] = None
    return tuple(found)
