"""Opens the conversation that an address stands for: with QEMU itself, or through libvirt."""

import os

from qvmi.qmp.address import Address, LibvirtAddress, parse_address
from qvmi.qmp.libvirt import LibvirtSession
from qvmi.qmp.monitor import CONNECT_TIMEOUT_S, Monitor
from qvmi.qmp.session import QmpSession

__all__ = ["open_monitor"]


async def open_monitor(
    address: str | os.PathLike[str] | Address, *, timeout_s: float = CONNECT_TIMEOUT_S
) -> Monitor:
    """This opens a conversation with the QEMU at an address, whatever form that has.

    Raises:
        UsageError: the address has none of the documented forms.
        AttachError: SocketUnreachable, NotQmp or QmpBusy, with what to do about it.
    """
    place = parse_address(address) if isinstance(address, str | os.PathLike) else address
    if isinstance(place, LibvirtAddress):
        return await LibvirtSession.connect(place, timeout_s=timeout_s)
    return await QmpSession.connect(place, timeout_s=timeout_s)
