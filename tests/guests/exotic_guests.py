"""Guests that have what no descriptor leads to, of every kernel and both architectures."""

from contextlib import ExitStack
from typing import Final

from tests.guests.aarch64_guests import aarch64
from tests.guests.lab import KERNELS, Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool

__all__ = ["EXOTIC_CONFIGS", "exotic_guest"]

EXOTIC_CONFIGS: Final = [*map(GuestConfig, KERNELS), aarch64(), aarch64("7.x-arm64")]


def exotic_guest(lab: Lab, stack: ExitStack, config: GuestConfig) -> Guest:
    """This is a guest in which the process ``exotic`` runs (tests/guests/lab/init/exotic.c)."""
    guest = GuestPool(lab, stack).restore(config)
    guest.ask("exotic")
    return guest
