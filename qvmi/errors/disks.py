"""What can be wrong with a virtual disk, or with what was captured of a virtual network card."""

from qvmi.errors.base import QvmiError

__all__ = ["CorruptCapture", "CorruptDisk", "DiskError", "DiskRefused", "NoSuchFile"]


class DiskError(QvmiError):
    """This is the base of what can be wrong with a virtual disk."""


class DiskRefused(DiskError):
    """This disk is not in files that are read.

    Attributes:
        disk: which one, or the image of it.
        reason: why.
    """

    def __init__(self, disk: str, reason: str) -> None:
        super().__init__(f"the disk {disk} cannot be read: {reason}")
        self.disk = disk
        self.reason = reason


class NoSuchFile(DiskError):
    """There is nothing of this name on the disk."""


class CorruptDisk(DiskError):
    """What is on the disk contradicts itself, or was changed while it was read."""


class CorruptCapture(QvmiError):
    """What was captured of a network card is no capture."""
