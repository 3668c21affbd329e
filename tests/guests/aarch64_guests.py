"""The aarch64 guests that tests look at: two kernels, each with 52 and with 48 bits of addresses."""

from tests.guests.lab import GuestConfig

__all__ = ["EVERY", "NARROW", "WIDE", "aarch64"]

WIDE, NARROW = "", "lpa2=off"
"""What the CPU model gets: as it is, it has FEAT_LPA2 and kernels use 52 bits; without, they use 48."""


def aarch64(
    kernel: str = "6.12-arm64", cpu_flags: str = WIDE, *, gdbstub: bool = False
) -> GuestConfig:
    """This is an aarch64 machine."""
    return GuestConfig(kernel=kernel, machine="virt", cpu_flags=cpu_flags, gdbstub=gdbstub)


EVERY = [aarch64(), aarch64(cpu_flags=NARROW), aarch64("7.x-arm64")]
