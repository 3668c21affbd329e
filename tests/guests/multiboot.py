"""A program of a few bytes that QEMU starts by itself: it sets registers and halts.

References: Multiboot Specification 0.6.96, section 3.1 (with the a.out kludge QEMU takes a flat binary);
Intel SDM volume 2, MOV (opcodes B8+rd id), HLT (F4), JMP rel8 (EB), INC r/m32 (FF /0).
"""

import struct
from collections.abc import Mapping
from typing import Final

__all__ = ["COUNTING_LOOP", "COUNTS_AT", "counting_program", "halted_program"]

COUNTS_AT: Final = 0x200000
COUNTING_LOOP: Final = 0x100025

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
_INCREMENT_AND_JUMP_BACK: Final = b"\xff\x00\xeb\xfc"  # inc dword [eax]; jmp -4


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


def counting_program() -> bytes:
    """This is a file for ``-kernel``: 32-bit code that counts in memory for ever.

    `COUNTS_AT` is incremented by the instruction at `COUNTING_LOOP`, behind which a jump leads back.
    """
    header = struct.pack(
        "<8I",
        _MAGIC,
        _AOUT_KLUDGE,
        -(_MAGIC + _AOUT_KLUDGE) & 0xFFFFFFFF,
        *(_LOADED_AT, _LOADED_AT, 0, 0, _LOADED_AT + _HEADER_BYTES),
    )
    load = struct.pack("<BI", _OPCODES["eax"], COUNTS_AT)
    assert _LOADED_AT + _HEADER_BYTES + len(load) == COUNTING_LOOP
    return header + load + _INCREMENT_AND_JUMP_BACK
