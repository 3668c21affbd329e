"""Other bytes in the memory of a guest that stands still, as a hostile kernel would have put there."""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from qvmi import Pa
from tests.guests.aarch64_guests import RAM_START
from tests.guests.lab import Guest, LabError

__all__ = ["GuestRam", "guest_ram"]

_LOW_RAM_END = 2 << 30
"""Up to this size all RAM of a q35 machine lies in one piece, at physical address 0."""


@dataclass(frozen=True, slots=True)
class GuestRam:
    """This is the RAM file of a guest, for reading and writing.

    Attributes:
        start: the physical address of its first byte.
    """

    buffer: mmap.mmap
    start: int = 0

    def write(self, pa: Pa, data: bytes) -> None:
        """This puts bytes there for good."""
        at = pa - self.start
        self.buffer[at : at + len(data)] = data

    @contextmanager
    def altered(self, pa: Pa, data: bytes) -> Iterator[None]:
        """This puts bytes there for the length of the block."""
        at = pa - self.start
        before = self.buffer[at : at + len(data)]
        self.write(pa, data)
        try:
            yield
        finally:
            self.write(pa, before)


@contextmanager
def guest_ram(guest: Guest) -> Iterator[GuestRam]:
    """This opens the RAM of a guest that must stand still, lest it trips over what is written."""
    path, *others = guest.ram_paths
    if others or path.stat().st_size > _LOW_RAM_END or guest.monitor.running():
        raise LabError("this guest runs, or its RAM is not one file of at most 2 GiB")
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as buffer:
        yield GuestRam(buffer, RAM_START if guest.config.machine == "virt" else 0)
