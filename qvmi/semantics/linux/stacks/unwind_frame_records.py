"""Kernel stacks of aarch64, unwound by the chain of frame records that its frame pointer leads to.

References: Linux arch/arm64/kernel/stacktrace.c (``kunwind_next``, since 6.13 with
``frame_record_meta``), arch/arm64/include/asm/stacktrace/frame.h, arch/arm64/kernel/entry.S
(``stackframe`` of ``pt_regs``), arch/arm64/include/asm/pointer_auth.h (``ptrauth_strip_kernel_insn_pac``);
Arm's Procedure Call Standard (AAPCS64), 6.4.6 (the frame pointer).
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from qvmi.addr import Va
from qvmi.semantics.linux.modules.code import KernelCode
from qvmi.semantics.linux.stacks.stack_info import Stack
from qvmi.semantics.linux.stacks.unwind import (
    Frame,
    How,
    Position,
    StackEnd,
    StackWords,
    Unwound,
    followed,
)
from qvmi.symbols.layout import Symbols

__all__ = ["FrameRecords"]

_WORD: Final = 8
_ADDRESS_MASK: Final = (1 << 64) - 1
_FINAL, _OF_REGISTERS = 1, 2
"""What lies behind a record of zeros (``FRAME_META_TYPE_…``); older kernels end every stack with one."""
_LINK: Final = 29 * _WORD
"""Where the frame pointer is in ``pt_regs``: its ``regs[29]``."""


class _Record(NamedTuple):
    """This is what one record leads to."""

    fp: int
    pc: int
    place: int
    how: How = How.FRAME_POINTER


class FrameRecords:
    """This unwinds one stack.

    Args:
        words: reads the stacks.
        symbols: of the kernel.
        code: tells what may be executed.
        va_bits: of the kernel's addresses; what a signed return address has above is its signature.
    """

    def __init__(
        self, words: StackWords, symbols: Symbols, code: KernelCode, *, va_bits: int
    ) -> None:
        self._words = words
        self._code = code
        self._signature = _ADDRESS_MASK >> va_bits << va_bits
        frame = symbols.find_field("pt_regs", ("stackframe",))
        pc = symbols.find_field("pt_regs", ("pc",))
        self._frame_at = None if frame is None else frame.offset
        self._pc_at = None if pc is None else pc.offset
        self._has_meta = symbols.find_field("frame_record_meta", ("type",)) is not None

    def unwound(self, position: Position) -> Unwound:
        """This unwinds from where a task stands.

        Raises:
            WalkFailed: the list of modules cannot be walked at all.
        """
        return followed(position, self._callers(position))

    def _callers(self, position: Position) -> Iterator[tuple[Frame, int]]:
        fp, left = position.fp, set[Stack]()
        reliable = position.frame.reliable
        while True:
            record = self._record(fp)
            reliable = reliable and self._words.holding(fp) is not None
            self._require_progress(fp, record.fp, left)
            pc = Va(record.pc | self._signature)
            if not self._code.is_executable(pc):
                raise StackEnd(f"{pc:#x}, at {record.place:#x}, is no code to return to")
            exact = record.how is How.INTERRUPT_FRAME
            yield Frame(pc, exact, record.how, reliable, Va(record.place)), fp + 2 * _WORD
            fp = record.fp

    def _record(self, fp: int) -> _Record:
        """This reads the record at a frame pointer.

        Raises:
            StackEnd: it is the last one.
            MemoryFault: it leads out of memory.
        """
        outer, pc = self._words.word(fp), self._words.word(fp + _WORD)
        if outer or pc:
            return _Record(outer, pc, fp + _WORD)
        if not self._has_meta or self._words.word(fp + 2 * _WORD) == _FINAL:
            raise StackEnd
        if self._words.word(fp + 2 * _WORD) != _OF_REGISTERS:
            raise StackEnd(f"the record of zeros at {fp:#x} is of no known kind")
        if self._frame_at is None or self._pc_at is None:
            raise StackEnd("the kernel's types do not tell where registers are saved")
        base = fp - self._frame_at
        place = base + self._pc_at
        return _Record(
            self._words.word(base + _LINK), self._words.word(place), place, How.INTERRUPT_FRAME
        )

    def _require_progress(self, before: int, fp: int, left: set[Stack]) -> None:
        """This raises unless the chain goes up, or to a stack that was not left before.

        Raises:
            StackEnd: the stack leads back to itself.
        """
        old, new = self._words.holding(before), self._words.holding(fp)
        if old == new and fp <= before and fp:
            raise StackEnd(f"the stack leads back from {before:#x} to {fp:#x}")
        if old != new:
            if new is not None and new in left:
                raise StackEnd(f"the stack at {fp:#x} was left before")
            if old is not None:
                left.add(old)
