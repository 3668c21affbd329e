"""The aarch64 guests that tests look at: two kernels, each with 52 and with 48 bits of addresses."""

import re
from mmap import PROT_READ, mmap

from tests.guests.lab import Guest, GuestConfig

__all__ = ["EVERY", "NARROW", "NOTE", "RAM_START", "WIDE", "aarch64", "noted"]

NOTE = b"VMCOREINFO\0\0OSRELEASE="
RAM_START = 0x40000000  # docs/system/arm/virt.rst
WIDE, NARROW = "", "lpa2=off"
"""What the CPU model gets: as it is, it has FEAT_LPA2 and kernels use 52 bits; without, they use 48."""


def aarch64(
    kernel: str = "6.12-arm64", cpu_flags: str = WIDE, *, gdbstub: bool = False
) -> GuestConfig:
    """This is an aarch64 machine."""
    return GuestConfig(kernel=kernel, machine="virt", cpu_flags=cpu_flags, gdbstub=gdbstub)


EVERY = [aarch64(), aarch64(cpu_flags=NARROW), aarch64("7.x-arm64")]


def noted(guest: Guest) -> dict[str, int]:
    """This is what the guest's kernel says in its note, as numbers where they are some."""
    with guest.ram_paths[0].open("rb") as ram, mmap(ram.fileno(), 0, prot=PROT_READ) as memory:
        at = memory.find(NOTE)
        lines = memory[at + 12 : memory.find(b"\0", at + 12)].decode().splitlines()
    pairs = (line.partition("=") for line in lines)
    # Of symbols and KERNELOFFSET it writes the digits alone.
    return {
        key: int(value.removeprefix("0x"), 16)
        for key, _, value in pairs
        if re.fullmatch(r"(0x)?[0-9a-f]+", value)
    }
