"""A NIC that is plugged into a guest while it runs."""

from contextlib import suppress
from typing import Final

from tests.guests.lab import Guest, GuestRefused, LabError
from tests.guests.waiting import wait_for

__all__ = ["CARD", "MODULES", "carrier", "plug_card"]

CARD: Final = "/sys/class/net/eth0"
"""The first card of a guest, as its kernel shows it."""

MODULES: Final = (
    *("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci"),
    *("failover", "net_failover", "virtio_net"),
)
"""Each after what it needs."""


def plug_card(guest: Guest) -> None:
    """This plugs a NIC named nic0 into a machine of type pc; its wire leads to nobody.

    Raises:
        LabError: QEMU does not take it, or the guest has no driver for it.
    """
    for module in MODULES:
        with suppress(GuestRefused):  # it is there already, or built in
            guest.ask(f"load {module}")
    for line in (
        "netdev_add hubport,id=wire,hubid=0",
        "device_add virtio-net-pci,netdev=wire,id=nic0",
    ):
        said = guest.monitor.human(line)
        if said:
            raise LabError(f"no card: {said.strip()}", fix="plug it into a machine of type pc")
    wait_for(guest, CARD)
    guest.run("ip link set eth0 up")


def carrier(guest: Guest) -> str:
    """This is whether the guest's own kernel sees the NIC's link: 1 or 0."""
    return guest.run(f"cat {CARD}/carrier").decode().strip()
