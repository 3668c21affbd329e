"""Gates of the interrupt descriptor table, as a test writes and reads them."""

import struct
from typing import Final

from tests.guests.kernel_packs.tampered_kernel import Tampered

__all__ = ["GATE", "OVERFLOW", "PAGE_FAULT", "TIMER", "gate_to", "handler_of"]

OVERFLOW: Final = 4
PAGE_FAULT: Final = 14
TIMER: Final = 0xEC
GATE: Final = 16
IN_USE: Final = 0xE
"""The type of an interrupt gate, Intel SDM volume 3A, table 3-2."""


def gate_to(kernel: Tampered, place: int, target: int, *, dpl: int = 0) -> bytes:
    """This is the gate at a place, leading elsewhere: Intel SDM volume 3A, figure 6-8."""
    _, selector, bits, *_ = struct.unpack("<HHHHII", kernel.read(place, GATE))
    assert bits >> 8 & 31 == IN_USE
    low, middle, high = target & 0xFFFF, target >> 16 & 0xFFFF, target >> 32
    return struct.pack("<HHHHII", low, selector, bits | dpl << 13, middle, high, 0)


def handler_of(kernel: Tampered, place: int) -> int:
    """This is where a gate leads."""
    low, _, _, middle, high, _ = struct.unpack("<HHHHII", kernel.read(place, GATE))
    return int(low | middle << 16 | high << 32)
