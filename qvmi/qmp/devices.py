"""A machine's NICs, netdevs and disks by QMP: which there are, their links, and snapshots.

References: QEMU ``qapi/net.json`` (``set_link``), ``net/net.c`` (``hmp_info_network``,
``print_net_client``, ``qmp_set_link``), ``qapi/block-core.json``
(``blockdev-snapshot-internal-sync``, ``blockdev-snapshot-sync``,
``blockdev-snapshot-delete-internal-sync``), 7.2.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qvmi.errors import QmpProtocolError
from qvmi.qmp.block import block_devices
from qvmi.qmp.monitor import Monitor

__all__ = [
    "MAX_DEVICES",
    "DiskNode",
    "delete_snapshot",
    "disk_nodes",
    "netdevs",
    "nics",
    "overlay",
    "parse_netdevs",
    "parse_nics",
    "set_link",
    "snapshot",
]

MAX_DEVICES: Final = 256
"""NICs, netdevs or disks of one machine; PCI has room for fewer on a bus."""

SNAPSHOT_S: Final = 60.0
"""Longest time for one snapshot, which writes out what QEMU holds of the disk."""

_CLIENT: Final = re.compile(r"(?:^|\s)([^\s:]+): index=\d+,type=([a-z0-9-]+)")
"""Behind ``hub0port1: `` where it is plugged into one of QEMU's own hubs."""
_NIC: Final = "nic"
_KEEPS_SNAPSHOTS: Final = frozenset({"qcow2"})
"""Formats whose driver has ``bdrv_snapshot_create`` and that a running guest writes to in practice."""


@dataclass(frozen=True, slots=True)
class DiskNode:
    """This is what a disk that is written to reads and writes.

    Args:
        device: QEMU's name of the disk; empty where it has none.
        node: the name of its block node.
        format: such as ``qcow2``.
    """

    device: str
    node: str
    format: str

    @property
    def keeps_snapshots(self) -> bool:
        """This tells whether a snapshot can lie in the image itself."""
        return self.format in _KEEPS_SNAPSHOTS

    def is_called(self, name: str) -> bool:
        """This tells whether the name is the disk's or its node's."""
        return bool(name) and name in (self.device, self.node)


async def nics(monitor: Monitor) -> tuple[str, ...]:
    """These are the names of the NICs that the guest has, in QEMU's order.

    Raises:
        QmpProtocolError: there are too many to be true.
    """
    return parse_nics(await monitor.hmp("info network"))


def parse_nics(printed: str) -> tuple[str, ...]:
    """This reads the answer to ``info network``.

    Raises:
        QmpProtocolError: there are too many NICs to be true.
    """
    return _clients(printed, lambda kind: kind == _NIC)


async def netdevs(monitor: Monitor) -> tuple[str, ...]:
    """These are the ids of what is behind the machine's NICs, in QEMU's order.

    Raises:
        MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer, or there are too many to be true.
    """
    return parse_netdevs(await monitor.hmp("info network"))


def parse_netdevs(printed: str) -> tuple[str, ...]:
    """This reads the answer to ``info network``.

    Raises:
        QmpProtocolError: there are too many netdevs to be true.
    """
    return _clients(printed, lambda kind: kind != _NIC)


def _clients(printed: str, is_wanted: Callable[[str], bool]) -> tuple[str, ...]:
    """These are the names of the network clients of some kinds; each queue has a line of its own."""
    names = dict.fromkeys(name for name, kind in _CLIENT.findall(printed) if is_wanted(kind))
    if len(names) > MAX_DEVICES:
        raise QmpProtocolError("info network", f"{len(names)} NICs or netdevs")
    return tuple(names)


async def set_link(monitor: Monitor, name: str, *, up: bool) -> None:
    """This plugs the cable of a NIC in, or out; the guest is told, and nothing passes any more."""
    await monitor.execute("set_link", {"name": name, "up": up})


async def disk_nodes(monitor: Monitor) -> tuple[DiskNode, ...]:
    """These are the disks that have a medium and may write to it.

    Raises:
        MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer, or in another form.
    """
    found = await block_devices(monitor)
    if len(found) > MAX_DEVICES:
        raise QmpProtocolError("query-block", f"{len(found)} disks")
    return tuple(
        DiskNode(one.backend, one.node, one.format)
        for one in found
        if one.format and not one.read_only
    )


async def snapshot(monitor: Monitor, disk: DiskNode, name: str) -> None:
    """This keeps how a disk is, in its own image."""
    arguments = {"device": disk.device or disk.node, "name": name}
    await monitor.execute("blockdev-snapshot-internal-sync", arguments, timeout_s=SNAPSHOT_S)


async def delete_snapshot(monitor: Monitor, device: str, name: str) -> None:
    """This gives up what :func:`snapshot` has kept."""
    arguments = {"device": device, "name": name}
    await monitor.execute("blockdev-snapshot-delete-internal-sync", arguments, timeout_s=SNAPSHOT_S)


async def overlay(monitor: Monitor, disk: DiskNode, path: Path, node: str) -> None:
    """This leaves a disk's image as it is from now on: QEMU makes a file for what is written."""
    arguments = {
        "node-name": disk.node,
        "snapshot-file": str(path),
        "snapshot-node-name": node,
        "format": "qcow2",
        "mode": "absolute-paths",
    }
    await monitor.execute("blockdev-snapshot-sync", arguments, timeout_s=SNAPSHOT_S)
