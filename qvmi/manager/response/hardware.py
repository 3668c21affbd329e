"""Steps at a machine's virtual devices: the links of its NICs, and snapshots of its disks."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qvmi.errors import StepRefused
from qvmi.manager.response.journal import Undo
from qvmi.manager.response.prepared import Prepared
from qvmi.manager.response.scene import Scene
from qvmi.manager.response.steps import DiskSnapshot, NicDown, NicUp
from qvmi.policy import Grant
from qvmi.qmp import devices
from qvmi.qmp.devices import DiskNode
from qvmi.qmp.monitor import Monitor

__all__ = ["Hardware"]

_NODE_LETTERS = 8
"""Of a new block node's name that are random; QEMU's longest name has 31 letters."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """This prepares steps at virtual devices.

    Args:
        monitor: the conversation with QEMU.
        require: raises PolicyDenied where something may not be done: grant, action.
    """

    monitor: Monitor
    require: Callable[[Grant, str], None]

    async def nic_down(self, step: NicDown, _: Scene) -> Prepared:
        """This prepares that nothing passes some NICs any more."""
        names = await self._nics(step.nic)
        undo = tuple(Undo(word="nic-up", names=(name,)) for name in names)

        async def act() -> str:
            for name in names:
                await devices.set_link(self.monitor, name, up=False)
            return f"{', '.join(names)}: the link is down"

        return Prepared(f"take down the link of {', '.join(names)}", act, undo)

    async def nic_up(self, step: NicUp, _: Scene) -> Prepared:
        """This prepares that they are as they were."""
        names = await self._nics(step.nic)

        async def act() -> str:
            for name in names:
                await devices.set_link(self.monitor, name, up=True)
            return f"{', '.join(names)}: the link is up"

        return Prepared(f"let the link of {', '.join(names)} be up", act)

    async def disk_snapshot(self, step: DiskSnapshot, scene: Scene) -> Prepared:
        """This prepares a snapshot of each disk, in its image where that can keep one."""
        self.require(Grant.CONTROL, "snapshot disks")
        disks = await self._disks(step)
        kept = [disk for disk in disks if disk.keeps_snapshots]
        others = _overlays(step, scene, [disk for disk in disks if not disk.keeps_snapshots])
        undo = tuple(
            Undo(word="delete-snapshot", names=(disk.device or disk.node, scene.run))
            for disk in kept
        )
        words = [f"{disk.device or disk.node}: snapshot {scene.run} in its image" for disk in kept]
        words += [
            f"{disk.device or disk.node}: unchanged from now on, with {path} for what is written"
            for disk, path in others
        ]

        async def act() -> str:
            for disk in kept:
                await devices.snapshot(self.monitor, disk, scene.run)
            for disk, path in others:
                node = f"qvmi-{secrets.token_hex(_NODE_LETTERS // 2)}"
                await devices.overlay(self.monitor, disk, path, node)
            return "; ".join(words)

        return Prepared("; ".join(words), act, undo)

    async def undo(self, undo: Undo) -> str:
        """This undoes one of these steps, and says what it did.

        Raises:
            PolicyDenied: it may not be done.
            QvmiError: it could not be done.
        """
        if undo.word == "nic-up":
            self.require(Grant.NIC, f"let the link of {undo.names[0]} be up")
            await devices.set_link(self.monitor, undo.names[0], up=True)
            return f"{undo.names[0]}: the link is up"
        device, name = undo.names
        self.require(Grant.CONTROL, f"delete snapshot {name}")
        await devices.delete_snapshot(self.monitor, device, name)
        return f"{device}: snapshot {name} is deleted"

    async def _nics(self, name: str | None) -> tuple[str, ...]:
        self.require(Grant.NIC, "change the links of NICs")
        found = await devices.nics(self.monitor)
        if not found:
            raise StepRefused("the machine has no NIC")
        if name is None:
            return found
        if name not in found:
            raise StepRefused(f"the machine has no NIC {name!r}; it has {', '.join(found)}")
        return (name,)

    async def _disks(self, step: DiskSnapshot) -> tuple[DiskNode, ...]:
        found = await devices.disk_nodes(self.monitor)
        if not found:
            raise StepRefused("the machine has no disk that is written to")
        wanted = tuple(disk for disk in found if step.name is None or disk.is_called(step.name))
        if not wanted:
            there = ", ".join(disk.device or disk.node for disk in found)
            raise StepRefused(
                f"no disk that is written to is called {step.name!r}; there is {there}"
            )
        return wanted


def _overlays(
    step: DiskSnapshot, scene: Scene, disks: list[DiskNode]
) -> list[tuple[DiskNode, Path]]:
    """These are the files for what is written to disks whose images cannot keep a snapshot.

    Raises:
        StepRefused: the playbook names no folder for them.
    """
    if disks and step.overlay_folder is None:
        names = ", ".join(f"{disk.device or disk.node} ({disk.format})" for disk in disks)
        raise StepRefused(
            f"{names}: the image cannot keep a snapshot, and the playbook names no overlay-folder"
        )
    folder = Path(step.overlay_folder or "")
    return [
        (disk, folder / f"{scene.run}-{number}.qcow2") for number, disk in enumerate(disks, start=1)
    ]
