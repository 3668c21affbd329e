"""A guest with disks: they are plugged in while it runs, and it is given the driver that it lacks."""

import base64
import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.guests.lab import Guest
from tests.guests.lab.kernels import newest_kernel
from tests.guests.lab.modules import modules_with_needs
from tests.guests.network_card import MODULES
from tests.guests.pool import GuestPool
from tests.guests.waiting import wait_for
from tests.isolation.user_vm import CONFIG

__all__ = ["DiskGuest", "disk_guest"]

_LINE: Final = 3000
"""Characters of one request; the guest's init takes 4 KiB."""
_PCI: Final = MODULES[: MODULES.index("virtio_pci") + 1]


@dataclass(slots=True)
class DiskGuest:
    """This is a guest that disks can be plugged into."""

    guest: Guest
    count: int = 0

    def plug(self, node: dict[str, object], device: str) -> str:
        """This plugs in a disk, and gives the name that the guest has for it."""
        monitor = self.guest.monitor
        monitor.execute("blockdev-add", **node)
        monitor.execute("device_add", driver="virtio-blk-pci", drive=node["node-name"], id=device)
        name = f"vd{'abcdefgh'[self.count]}"
        self.count += 1
        wait_for(self.guest, f"/sys/block/{name}")
        major, minor = self.run(f"cat /sys/block/{name}/dev").strip().split(":")
        self.run(f"[ -b /dev/{name} ] || mknod /dev/{name} b {major} {minor}")
        return name

    def plug_ext4(self, image: Path, form: str, device: str, folder: str) -> None:
        """This plugs in an image with a file system, and mounts it."""
        file = {"driver": "file", "filename": str(image)}
        name = self.plug({"driver": form, "node-name": f"node-{device}", "file": file}, device)
        said = self.run(f"mkdir -p {folder}; mount -t ext4 /dev/{name} {folder}")
        assert said == "", said

    def run(self, command: str) -> str:
        return self.guest.run(command).decode()


def disk_guest(pool: GuestPool) -> DiskGuest:
    """This thaws a guest and gives it the driver of virtio disks."""
    guest = pool.restore(CONFIG)
    for module in _PCI:
        guest.ask(f"load {module}")
    kernel = newest_kernel(CONFIG.kernel or "", pool.lab.cache, _silent)
    (*_, driver) = modules_with_needs(kernel.modules, ("virtio_blk",))
    packed = base64.b64encode(lzma.compress(driver.content)).decode()
    for at in range(0, len(packed), _LINE):
        guest.run(f"echo {packed[at : at + _LINE]} >> /run/packed")
    said = guest.run("base64 -d /run/packed | xz -dc > /modules/virtio_blk.ko")
    assert said == b"", said
    guest.ask("load virtio_blk")
    return DiskGuest(guest)


def _silent(_message: str) -> None:
    """The kernel is there: nothing is to be said of fetching it."""
