"""What a machine has not that a grant would show of it: a disk that is read, a card to capture at."""

from collections.abc import Awaitable, Callable

from qvmi.machine.devices.disks import Disk
from qvmi.policy import Grant
from qvmi.semantics.guest_os import Listing

__all__ = ["lacking"]


async def lacking(
    grant: Grant,
    disks: Callable[[], Awaitable[Listing[Disk]]],
    netdevs: Callable[[], Awaitable[tuple[str, ...]]],
) -> str:
    """This is why there is nothing to show, in words; empty where there is something.

    Args:
        grant: that something would be shown by.
        disks: lists the machine's disks.
        netdevs: lists what is behind its network cards.
    """
    if grant is Grant.DISK:
        return _no_disk(await disks())
    if grant is Grant.NETWORK_CAPTURE and not await netdevs():
        return "this machine has no network card that could be captured at"
    return ""


def _no_disk(disks: Listing[Disk]) -> str:
    if any(not disk.refused for disk in disks):
        return ""
    reasons = ", ".join(f"{disk.id}: {disk.refused}" for disk in disks)
    return (
        f"this machine has no disk that is read ({reasons})"
        if reasons
        else "this machine has no disk"
    )
