"""A disk of this host that a machine has open, and what this host itself does with it."""

from dataclasses import dataclass

__all__ = ["GivenDisk"]


@dataclass(frozen=True, slots=True)
class GivenDisk:
    """This is a disk of the host's, or a file that the host has mounted, which a machine has open.

    Args:
        number: the machine's file descriptor.
        path: as the kernel shows it.
        places: where this host has it, or a part of it, mounted.
        filesystems: the devices of those file systems.
        is_network: whether it is a disk behind a program that nobody sees.
    """

    number: int
    path: str
    places: tuple[str, ...] = ()
    filesystems: frozenset[int] = frozenset()
    is_network: bool = False
