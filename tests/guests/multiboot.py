"""A program of a few bytes that QEMU starts by itself: it sets registers and halts.

References: Multiboot Specification 0.6.96, section 3.1 (with the a.out kludge QEMU takes a flat binary);
Intel SDM volume 2, MOV (opcodes B8+rd id), HLT (F4), JMP rel8 (EB).
"""

import struct
from collections.abc import Mapping
from typing import Final

__all__ = ["halted_program"]

_MAGIC, _AOUT_KLUDGE = 0x1BADB002, 1 << 16
_LOADED_AT: Final = 0x100000
_HEADER_BYTES: Final = 32
_OPCODES: Final = {
    "eax": 0xB8,
    "ecx": 0xB9,
    "edx": 0xBA,
    "ebx": 0xBB,
    "esp": 0xBC,
    "ebp": 0xBD,
    "esi": 0xBE,
    "edi": 0xBF,
}
_HALT_FOR_EVER: Final = b"\xf4\xeb\xfd"


def halted_program(registers: Mapping[str, int]) -> bytes:
    """This is a file for ``-kernel``: 32-bit code that loads these registers, then halts."""
    header = struct.pack(
        "<8I",
        _MAGIC,
        _AOUT_KLUDGE,
        -(_MAGIC + _AOUT_KLUDGE) & 0xFFFFFFFF,
        *(_LOADED_AT, _LOADED_AT, 0, 0, _LOADED_AT + _HEADER_BYTES),
    )
    loads = b"".join(struct.pack("<BI", _OPCODES[name], n) for name, n in registers.items())
    return header + loads + _HALT_FOR_EVER
