"""The few instructions that a kernel puts into its own running code: branches, and what stands for none.

References: Intel SDM volume 2 (CALL, JMP, Jcc, NOP, RET, INT3, UD1); Arm ARM C6.2 (B, BL, NOP, BRK).
"""

from collections.abc import Callable
from enum import StrEnum
from struct import Struct
from typing import Final, NamedTuple

__all__ = [
    "FAR_JUMP_SIZE",
    "Decode",
    "Instruction",
    "Kind",
    "aarch64_far_jump",
    "aarch64_instruction",
    "x86_64_instruction",
]


class Kind(StrEnum):
    """This is what an instruction does."""

    NOTHING = "nothing"
    CALL = "call"
    JUMP = "jump"
    RETURN = "return"
    ZERO = "zero"
    """It clears the register of results, in the length of a call."""
    TRAP = "trap"
    WARNING = "warning"
    """It makes the kernel warn, in the length of a call."""


class Instruction(NamedTuple):
    """This is one instruction.

    Args:
        kind: what it does.
        size: in bytes.
        target: where a call or a jump leads; 0 for others.
    """

    kind: Kind
    size: int
    target: int = 0


Decode = Callable[[bytes, int], Instruction | None]
"""Takes code and its address, and gives the first instruction; None for one of no kind that is known."""

_ADDRESSES: Final = 1 << 64
_NEAR: Final = Struct("<i")
_SHORT: Final = Struct("<b")
_WORD: Final = Struct("<I")
_PLAIN: Final = {
    b"\x0f\x1f\x44\x00\x00": Instruction(Kind.NOTHING, 5),
    b"\x66\x66\x66\x66\x90": Instruction(Kind.NOTHING, 5),  # of AMD's processors, before 5.13
    b"\x90\x90\x90\x90\x90": Instruction(Kind.NOTHING, 5),
    b"\x66\x66\x48\x31\xc0": Instruction(Kind.ZERO, 5),
    b"\x2e\x2e\x2e\x31\xc0": Instruction(Kind.ZERO, 5),
    b"\x67\x48\x0f\xb9\x3a": Instruction(Kind.WARNING, 5),
}
_NOTHING_2: Final = Instruction(Kind.NOTHING, 2)
_RETURN: Final = Instruction(Kind.RETURN, 1)
_TRAP: Final = Instruction(Kind.TRAP, 1)
_JCC: Final = 0x80
_CALL, _JUMP, _JUMP_SHORT, _RET, _INT3, _TWO_BYTES = 0xE8, 0xE9, 0xEB, 0xC3, 0xCC, 0x0F


def x86_64_instruction(code: bytes, va: int) -> Instruction | None:
    """This decodes an instruction of x86-64, of which six bytes are there."""
    plain = _PLAIN.get(code[:5])
    if plain is not None:
        return plain
    first = code[0]
    if first in {_CALL, _JUMP}:
        kind = Kind.CALL if first == _CALL else Kind.JUMP
        return Instruction(kind, 5, (va + 5 + _NEAR.unpack_from(code, 1)[0]) % _ADDRESSES)
    if first == _JUMP_SHORT:
        return Instruction(Kind.JUMP, 2, (va + 2 + _SHORT.unpack_from(code, 1)[0]) % _ADDRESSES)
    if first == _TWO_BYTES and code[1] & 0xF0 == _JCC:
        return Instruction(Kind.JUMP, 6, (va + 6 + _NEAR.unpack_from(code, 2)[0]) % _ADDRESSES)
    if code[:2] == b"\x66\x90":
        return _NOTHING_2
    return {_RET: _RETURN, _INT3: _TRAP}.get(first)


_A64_NOP: Final = 0xD503201F
_A64_RET: Final = 0xD65F03C0
_A64_BRANCH: Final = {0x5: Kind.JUMP, 0x25: Kind.CALL}
_A64_BRK: Final = 0xD4200000
_A64_BRK_MASK: Final = 0xFFE0001F


def aarch64_instruction(code: bytes, va: int) -> Instruction | None:
    """This decodes an instruction of aarch64, of which four bytes are there."""
    word: int = _WORD.unpack_from(code)[0]
    if word == _A64_NOP:
        return Instruction(Kind.NOTHING, 4)
    kind = _A64_BRANCH.get(word >> 26)
    if kind is not None:
        distance = (word & 0x3FFFFFF) - ((word & 0x2000000) << 1)
        return Instruction(kind, 4, (va + 4 * distance) % _ADDRESSES)
    if word == _A64_RET:
        return Instruction(Kind.RETURN, 4)
    return Instruction(Kind.TRAP, 4) if word & _A64_BRK_MASK == _A64_BRK else None


FAR_JUMP_SIZE: Final = 12
"""Bytes of ``adrp x16``, ``add x16``, ``br x16``: how code of aarch64 reaches what is far."""
_FAR_JUMP: Final = Struct("<3I")
_A64_ADRP_X16: Final = 0x90000010
_A64_ADRP_MASK: Final = 0x9F00001F
_A64_ADD_X16: Final = 0x91000210
_A64_ADD_MASK: Final = 0xFFC003FF
_A64_BR_X16: Final = 0xD61F0200


def aarch64_far_jump(code: bytes, va: int) -> int | None:
    """This is where such a jump leads; None where FAR_JUMP_SIZE bytes of code are none."""
    page, rest, jump = _FAR_JUMP.unpack(code)
    if page & _A64_ADRP_MASK != _A64_ADRP_X16 or jump != _A64_BR_X16:
        return None
    if rest & _A64_ADD_MASK != _A64_ADD_X16:
        return None
    pages = (page >> 5 & 0x7FFFF) << 2 | page >> 29 & 3
    pages -= (pages & 0x100000) << 1
    return int((va & ~0xFFF) + (pages << 12) + (rest >> 10 & 0xFFF)) % _ADDRESSES
