"""Machine code that a test writes over the kernel's, and where the kernel patches its own."""

import struct
from typing import Final

from tests.guests.kernel_packs.tampered_kernel import Tampered

__all__ = ["call_to", "is_x86_64", "label_place", "returning", "traced_at"]

_RET_X86_64: Final = b"\x31\xc0\xc3\x90"
_RET_ARM64: Final = bytes.fromhex("e0031faac0035fd6")
"""mov x0, xzr; ret."""


def is_x86_64(kernel: Tampered) -> bool:
    """This tells x86-64 from arm64."""
    return "x64_sys_call" in kernel.symbols


def returning(kernel: Tampered) -> bytes:
    """This is code that returns 0."""
    return _RET_X86_64 if is_x86_64(kernel) else _RET_ARM64


def call_to(kernel: Tampered, place: int, target: int) -> bytes:
    """This is the machine code of a call: E8 rel32, or BL."""
    if is_x86_64(kernel):
        return b"\xe8" + struct.pack("<i", target - place - 5)
    return struct.pack("<I", 0x94000000 | (target - place >> 2 & 0x3FFFFFF))


def traced_at(kernel: Tampered, function: int) -> int:
    """This finds the instruction that ftrace patches, by what does nothing at a function's beginning."""
    return function + kernel.read(function, 32).index(_nothing(kernel))


def label_place(kernel: Tampered) -> int:
    """This is the place of a jump label that is off and as long as a jump: struct jump_entry.code."""
    table, nothing = kernel.symbols["__start___jump_table"], _nothing(kernel)
    rows = struct.iter_unpack("<iiq", kernel.read(table, 400 * 16))
    places = (int(table + 16 * index + code) for index, (code, _, _) in enumerate(rows))
    off = (at for at in places if kernel.read(at, len(nothing)) == nothing)
    return next(at for at in off if at % 4096 < 4000)


def _nothing(kernel: Tampered) -> bytes:
    return b"\x0f\x1f\x44\x00\x00" if is_x86_64(kernel) else b"\x1f\x20\x03\xd5"
