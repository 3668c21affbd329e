"""How callers are found, in the words that debuggers read: an ``.eh_frame`` section made of ORC rows.

References: DWARF 5, 6.4 (call frame information) and 7.24; LSB 5.0, 10.6 (``.eh_frame``); System V ABI, AMD64
supplement, figure 3.36 (numbers of registers); Linux arch/x86/include/asm/ptrace.h (``pt_regs``).
"""

from collections.abc import Iterable, Iterator, Sequence
from struct import Struct
from typing import Final

from qvmi.addr import Va
from qvmi.symbols.orc import OrcBase, OrcKind, OrcRow

__all__ = ["eh_frame"]

_MAX_ROWS: Final = 64
"""Rows in one description: a debugger reads it from its beginning."""
_MAX_SIZE: Final = 1 << 20
"""Bytes of code in one description: behind a gap in the addresses is another table."""

_RBP, _RSP, _RETURN = 6, 7, 16
_REGISTERS: Final = {
    OrcBase.DX: 1,
    OrcBase.DI: 5,
    OrcBase.BP: _RBP,
    OrcBase.SP: _RSP,
    OrcBase.R10: 10,
    OrcBase.R13: 13,
}
_PT_REGS: Final = (
    15,
    14,
    13,
    12,
    _RBP,
    3,
    11,
    10,
    9,
    8,
    0,
    2,
    1,
    4,
    5,
    None,
    _RETURN,
    None,
    None,
    _RSP,
)
"""The register in each eight bytes of ``pt_regs``; None for what has no number."""
_INTERRUPT_FRAME: Final = (_RETURN, None, None, _RSP)

# DW_CFA_…
_ADVANCE, _OFFSET = 0x40, 0x80
_ADVANCE_1, _ADVANCE_2, _ADVANCE_4 = 0x02, 0x03, 0x04
_UNDEFINED, _SAME_VALUE = 0x07, 0x08
_DEF_CFA, _DEF_CFA_EXPRESSION, _EXPRESSION = 0x0C, 0x0F, 0x10
_OFFSET_SF: Final = 0x11
# DW_OP_…
_DEREF, _CONSTS, _PLUS, _BREG = 0x06, 0x11, 0x22, 0x70

_WORD: Final = 8
_LENGTH: Final = Struct("<I")
_FDE: Final = Struct("<IQQB")  # where its CIE is, start, size, no augmentation
_SEVEN_BITS, _MORE, _SIGN = 0x7F, 0x80, 0x40
_SMALL, _BYTE, _HALF = 1 << 6, 1 << 8, 1 << 16


def eh_frame(rows: Iterable[tuple[Va, OrcRow]]) -> bytes:
    """This makes the section.

    Args:
        rows: with the address from which on each is right; those of one table by rising address.
    """
    plain, interrupted = _cie(b"zR\0", b"\0"), _cie(b"zRS\0", b"\0")
    section = bytearray(plain + interrupted)
    cies = {False: 0, True: len(plain)}
    encoded: dict[OrcRow, bytes] = {}
    for run, end in _runs(rows):
        is_interrupted = run[0][1].kind in {OrcKind.REGISTERS, OrcKind.INTERRUPT_FRAME}
        program = bytearray()
        at = run[0][0]
        for address, row in run:
            if row not in encoded:
                encoded[row] = _rules(row)
            program += _advance(address - at) + encoded[row]
            at = address
        back = len(section) + _LENGTH.size - cies[is_interrupted]
        section += _padded(_FDE.pack(back, run[0][0], end - run[0][0], 0) + program)
    return bytes(section + _LENGTH.pack(0))


def _runs(
    rows: Iterable[tuple[Va, OrcRow]],
) -> Iterator[tuple[Sequence[tuple[Va, OrcRow]], Va]]:
    """These are pieces of one kind, each with where it ends."""
    run: list[tuple[Va, OrcRow]] = []
    for address, row in rows:
        if run and address == run[-1][0]:
            run[-1] = (address, row)
            continue
        near = bool(run) and 0 < address - run[0][0] < _MAX_SIZE
        if run and (not near or len(run) == _MAX_ROWS or row.kind != run[-1][1].kind):
            if near:
                yield run, address
            run = []
        run.append((address, row))


def _rules(row: OrcRow) -> bytes:
    """This is what holds from a row on."""
    if row.kind in {OrcKind.NOTHING, OrcKind.END}:
        return _defined(_RSP, _WORD) + bytes([_UNDEFINED, _RETURN])
    place = _place(row)
    if row.kind is OrcKind.CALL:
        return place + bytes([_OFFSET | _RETURN, 1]) + _frame_pointer(row)
    saved = _PT_REGS if row.kind is OrcKind.REGISTERS else _INTERRUPT_FRAME
    return place + b"".join(
        bytes([_OFFSET_SF, register]) + _sleb(-index)
        for index, register in enumerate(saved)
        if register is not None
    )


def _place(row: OrcRow) -> bytes:
    """This is where the frame ends, from which all else is counted."""
    if row.base is OrcBase.BP_INDIRECT:
        return _expression(bytes([_BREG + _RBP]) + _sleb(row.sp_offset) + bytes([_DEREF]))
    if row.base is OrcBase.SP_INDIRECT:
        added = bytes([_CONSTS]) + _sleb(row.sp_offset) + bytes([_PLUS])
        return _expression(bytes([_BREG + _RSP, 0, _DEREF]) + added)
    register = _REGISTERS[row.base]
    if row.sp_offset >= 0:
        return _defined(register, row.sp_offset)
    return _expression(bytes([_BREG + register]) + _sleb(row.sp_offset))


def _frame_pointer(row: OrcRow) -> bytes:
    if row.bp_base is OrcBase.PREVIOUS_SP and row.bp_offset % _WORD == 0:
        return bytes([_OFFSET_SF, _RBP]) + _sleb(-row.bp_offset // _WORD)
    if row.bp_base is OrcBase.BP:
        where = bytes([_BREG + _RBP]) + _sleb(row.bp_offset)
        return bytes([_EXPRESSION, _RBP]) + _uleb(len(where)) + where
    return bytes([_SAME_VALUE, _RBP])


def _defined(register: int, offset: int) -> bytes:
    return bytes([_DEF_CFA, register]) + _uleb(offset)


def _expression(words: bytes) -> bytes:
    return bytes([_DEF_CFA_EXPRESSION]) + _uleb(len(words)) + words


def _advance(distance: int) -> bytes:
    if distance == 0:
        return b""
    if distance < _SMALL:
        return bytes([_ADVANCE | distance])
    if distance < _BYTE:
        return bytes([_ADVANCE_1, distance])
    if distance < _HALF:
        return bytes([_ADVANCE_2]) + distance.to_bytes(2, "little")
    return bytes([_ADVANCE_4]) + distance.to_bytes(4, "little")


def _cie(augmentation: bytes, encoding: bytes) -> bytes:
    """This is what descriptions have in common: saved words lie 8 bytes apart, downwards."""
    alignment = _uleb(1) + _sleb(-_WORD)
    body = b"\0\0\0\0\x01" + augmentation + alignment + bytes([_RETURN]) + _uleb(1) + encoding
    return _padded(body + _rules_of_nothing())


def _rules_of_nothing() -> bytes:
    return _defined(_RSP, _WORD) + bytes([_OFFSET | _RETURN, 1])


def _padded(body: bytes) -> bytes:
    padded = body + bytes(-(_LENGTH.size + len(body)) % _WORD)  # 0 is DW_CFA_nop
    return _LENGTH.pack(len(padded)) + padded


# LEB128: seven bits in each byte, the lowest first; the top bit says that more follow.


def _uleb(value: int) -> bytes:
    encoded = bytearray()
    while value > _SEVEN_BITS:
        encoded.append(value & _SEVEN_BITS | _MORE)
        value >>= 7
    return bytes([*encoded, value])


def _sleb(value: int) -> bytes:
    encoded = bytearray()
    while not -_SIGN <= value < _SIGN:
        encoded.append(value & _SEVEN_BITS | _MORE)
        value >>= 7
    return bytes([*encoded, value & _SEVEN_BITS])
