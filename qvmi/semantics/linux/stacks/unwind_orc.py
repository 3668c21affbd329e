"""Kernel stacks of x86-64, unwound as the kernel unwinds them: by its ORC tables.

References: Linux arch/x86/kernel/unwind_orc.c (``unwind_next_frame``, ``__unwind_start``),
arch/x86/include/asm/ptrace.h (``pt_regs``), arch/x86/include/asm/switch_to.h (``inactive_task_frame``).
"""

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from qvmi.addr import Va
from qvmi.semantics.linux.modules.code import KernelCode
from qvmi.semantics.linux.stacks.orc import OrcRows
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
from qvmi.symbols.orc import OrcBase, OrcKind, OrcRow

__all__ = ["OrcUnwinder"]

_WORD: Final = 8
_ADDRESSES: Final = 1 << 64

# Where registers are in pt_regs, which is the same on all kernels: system calls fill it in this order.
_R13, _R10, _BP, _DX, _DI, _IP, _CS, _SP = 16, 56, 32, 96, 112, 128, 136, 152
_SAVED: Final = {OrcBase.R13: _R13, OrcBase.R10: _R10, OrcBase.DX: _DX, OrcBase.DI: _DI}
_LAST_FRAME: Final = 184
"""Bytes at the beginning of a stack that ``pt_regs`` (168) and, since 6.9, the padding beside it take."""
_USER: Final = 3
"""The privilege level in ``cs``."""

_WITH_FRAME_POINTER: Final = OrcRow(OrcKind.CALL, OrcBase.BP, 16, OrcBase.PREVIOUS_SP, -16)
"""What the kernel takes for code that no table is about: programs of eBPF keep one."""
_INDIRECT: Final = frozenset({OrcBase.BP_INDIRECT, OrcBase.SP_INDIRECT})


class _State(NamedTuple):
    """This is where unwinding stands."""

    pc: int
    exact: bool
    sp: int
    bp: int
    registers: Mapping[OrcBase, int]
    place: int


class OrcUnwinder:
    """This unwinds one stack.

    Args:
        words: reads the stacks.
        rows: says how callers are found.
        code: tells what may be executed.
    """

    def __init__(self, words: StackWords, rows: OrcRows, code: KernelCode) -> None:
        self._words = words
        self._rows = rows
        self._code = code
        self._left = set[Stack]()
        self._reliable = True

    def unwound(self, position: Position) -> Unwound:
        """This unwinds from where a task stands.

        Raises:
            WalkFailed: the list of modules cannot be walked at all.
        """
        return followed(position, self._callers(position))

    def _callers(self, position: Position) -> Iterator[tuple[Frame, int]]:
        frame = position.frame
        self._reliable = frame.reliable
        state = _State(frame.pc, frame.exact, position.sp, position.fp, position.registers, 0)
        while True:
            state, how = self._caller(state)
            place = Va(state.place)
            yield Frame(Va(state.pc), state.exact, how, self._reliable, place), state.sp

    def _caller(self, state: _State) -> tuple[_State, How]:
        """This is the frame that a frame was called from, or that it interrupted.

        Raises:
            StackEnd: there is none, or no telling.
            MemoryFault: the stack leads out of memory.
        """
        # A call that never returns may be the last instruction of its function.
        row = self._rows.at(Va(state.pc if state.exact else state.pc - 1))
        how = How.ORC
        if row is None:
            row, how, self._reliable = _WITH_FRAME_POINTER, How.FRAME_POINTER, False
        if row.kind is OrcKind.END:
            raise StackEnd(self._why_not_the_end(state))
        if row.kind is OrcKind.NOTHING:
            raise StackEnd(f"the kernel's tables do not tell what called {state.pc:#x}")
        sp = self._place(row, state)
        if row.kind is OrcKind.CALL:
            found = _State(
                self._word(sp - _WORD),
                exact=False,
                sp=sp,
                bp=state.bp,
                registers={},
                place=sp - _WORD,
            )
        else:
            found, how = self._interrupted(row, sp, state), How.INTERRUPT_FRAME
        found = found._replace(bp=self._frame_pointer(row, sp, found.bp))
        self._require_progress(state.sp, found.sp)
        if not self._code.is_text(Va(found.pc)):
            self._reliable = False
            if not self._code.is_executable(Va(found.pc)):
                raise StackEnd(f"{found.pc:#x}, at {found.place:#x}, is no code to return to")
        return found, how

    def _why_not_the_end(self, state: _State) -> str:
        """This is why a stack cannot end here, as old tables say of retpolines; empty where it can."""
        stack = self._words.holding(state.sp)
        if stack is None or stack.end - state.sp <= _LAST_FRAME:
            return ""
        return f"the kernel's tables do not tell what called {state.pc:#x}"

    def _place(self, row: OrcRow, state: _State) -> int:
        """This is what a row calls the place: behind the return address, or where registers are."""
        if row.base in _INDIRECT:
            inner = state.sp if row.base is OrcBase.SP_INDIRECT else state.bp + row.sp_offset
            outer = self._word(inner)
            return outer + row.sp_offset if row.base is OrcBase.SP_INDIRECT else outer
        known = {OrcBase.SP: state.sp, OrcBase.BP: state.bp, **state.registers}
        if row.base not in known:
            raise StackEnd(f"the stack of {state.pc:#x} is told by a register that is not known")
        return (known[row.base] + row.sp_offset) % _ADDRESSES

    def _interrupted(self, row: OrcRow, sp: int, state: _State) -> _State:
        """This is what an interrupt, an exception or a system call has interrupted.

        Raises:
            StackEnd: it was user mode.
        """
        whole = row.kind is OrcKind.REGISTERS
        base = sp if whole else sp - _IP
        if self._word(base + _CS) & _USER == _USER:
            raise StackEnd
        registers = dict(state.registers)
        bp = state.bp
        if whole:
            registers = {name: self._word(base + at) for name, at in _SAVED.items()}
            bp = self._word(base + _BP)
        pc, outer = self._word(base + _IP), self._word(base + _SP)
        return _State(pc, exact=True, sp=outer, bp=bp, registers=registers, place=base + _IP)

    def _frame_pointer(self, row: OrcRow, sp: int, bp: int) -> int:
        if row.bp_base is OrcBase.PREVIOUS_SP:
            return self._word(sp + row.bp_offset)
        if row.bp_base is OrcBase.BP:
            return self._word(bp + row.bp_offset)
        return bp

    def _word(self, va: int) -> int:
        """This reads a word, which is to be on a stack."""
        if self._words.holding(va) is None:
            self._reliable = False
        return self._words.word(va)

    def _require_progress(self, before: int, sp: int) -> None:
        """This raises unless the stack pointer moves up, or to a stack that was not left before.

        Raises:
            StackEnd: the stack leads back to itself.
        """
        old, new = self._words.holding(before), self._words.holding(sp)
        if old == new and sp <= before:
            raise StackEnd(f"the stack leads back from {before:#x} to {sp:#x}")
        if old != new:
            if new in self._left:
                raise StackEnd(f"the stack at {sp:#x} was left before")
            if old is not None:
                self._left.add(old)
