"""Where a task stands: in the registers of the vCPU that runs it, or as it was saved when it went to sleep.

References: Linux arch/x86/include/asm/switch_to.h (``inactive_task_frame``), arch/x86/kernel/unwind_orc.c
(``__unwind_start``); arch/arm64/include/asm/processor.h (``cpu_context``).
"""

from collections.abc import Sequence
from typing import Final

from qvmi.addr import Va
from qvmi.arch import aarch64
from qvmi.arch.registers import Registers
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.stacks.stack_info import KernelStacks, Stack
from qvmi.semantics.linux.stacks.unwind import Frame, How, Position
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.symbols.layout import Field, Symbols, field_offset
from qvmi.symbols.orc import OrcBase

__all__ = ["NotSeen", "TaskOnCpu", "saved_position"]

_FORKED: Final = ("ret_from_fork_asm", "ret_from_fork")
"""Where a task begins: nobody has called these, so that the address is not one behind a call."""
_FRAME_POINTER: Final = 29


class NotSeen(Exception):
    """Where the task stands cannot be told: the text says why."""


class TaskOnCpu:
    """This finds the vCPU that runs a task, by the stack that it is on.

    Args:
        stack: of the task.
        cpu: that has run it last, by the kernel's number.
        stacks: of the kernel.
        is_on_cpu: whether the kernel says that it runs.
    """

    def __init__(self, stack: Stack, cpu: int, stacks: KernelStacks, *, is_on_cpu: bool) -> None:
        self._stack = stack
        self._cpu = cpu
        self._stacks = stacks
        self._is_on_cpu = is_on_cpu

    def position(self, vcpus: Sequence[Registers]) -> Position | None:
        """This is where the task stands; None where no vCPU runs it.

        Raises:
            NotSeen: one does, and it is not told which, or with what registers.
        """
        if not vcpus:
            if self._is_on_cpu:
                raise NotSeen(
                    "it runs, and the registers of this moment are not known: pause the guest"
                )
            return None
        for registers in vcpus:
            if not _in_user_mode(registers) and self._is_mine(registers):
                return _position(registers)
        if not self._is_on_cpu:
            return None
        if self._cpu < len(vcpus) and _in_user_mode(vcpus[self._cpu]):
            return _position(vcpus[self._cpu], How.USER_MODE)
        raise NotSeen("it runs, and no vCPU is on a stack of its or in user mode")

    def _is_mine(self, registers: Registers) -> bool:
        """This tells whether a vCPU in the kernel works for the task."""
        sp = _stack_pointer(registers)
        if self._stack.holds(sp):
            return True
        stack = next((one for one in self._stacks.of_cpus if one.holds(sp)), None)
        return self._is_on_cpu and stack is not None and stack.cpu == self._cpu


def saved_position(space: AddressSpace, symbols: Symbols, task: Va) -> Position:
    """This is where a task went to sleep.

    Raises:
        SymbolsError: the kernel's types do not tell where that is kept.
        MemoryFault: it cannot be read.
    """
    thread = field_offset(symbols, "task_struct", "thread")
    context = symbols.find_field("thread_struct", ("cpu_context",))
    if context is not None:
        return _saved_on_aarch64(space, symbols, Va(task + thread), context)
    read_sp = compile_reader(space, *_two(thread + field_offset(symbols, "thread_struct", "sp")))
    sp = read_sp(task)[0]
    size = symbols.size_of("inactive_task_frame") or 0
    bp_at = field_offset(symbols, "inactive_task_frame", "bp")
    pc_at = field_offset(symbols, "inactive_task_frame", "ret_addr")
    bp, pc = compile_reader(space, (bp_at, "Q"), (pc_at, "Q"))(sp)
    begins = pc in {symbols.find(name) for name in _FORKED}
    frame = Frame(Va(pc), begins, How.SAVED, reliable=True, place=Va(sp + pc_at))
    return Position(frame, sp + size, bp)


def _two(offset: int) -> tuple[tuple[int, str], tuple[int, str]]:
    """These are a word and the one behind it: a reader reads two at least."""
    return (offset, "Q"), (offset + 8, "Q")


def _saved_on_aarch64(
    space: AddressSpace, symbols: Symbols, thread: Va, context: Field
) -> Position:
    offsets = [field_offset(symbols, "cpu_context", name) for name in ("fp", "sp", "pc")]
    read = compile_reader(space, *((context.offset + at, "Q") for at in offsets))
    fp, sp, pc = read(thread)
    place = Va(thread + context.offset + offsets[2])
    begins = pc in {symbols.find(name) for name in _FORKED}
    return Position(Frame(Va(pc), begins, How.SAVED, reliable=True, place=place), sp, fp)


def _in_user_mode(registers: Registers) -> bool:
    if isinstance(registers, aarch64.Registers):
        return registers.exception_level == 0
    return registers.cpl == 3  # noqa: PLR2004 - the manuals call it so


def _stack_pointer(registers: Registers) -> int:
    return registers.sp if isinstance(registers, aarch64.Registers) else registers.rsp


def _position(registers: Registers, how: How = How.REGISTERS) -> Position:
    if isinstance(registers, aarch64.Registers):
        frame = Frame(registers.pc, exact=True, how=how, reliable=True, place=None)
        return Position(frame, registers.sp, registers.x[_FRAME_POINTER])
    frame = Frame(registers.rip, exact=True, how=how, reliable=True, place=None)
    others = {
        OrcBase.DX: registers.rdx,
        OrcBase.DI: registers.rdi,
        OrcBase.R10: registers.r10 or 0,
        OrcBase.R13: registers.r13 or 0,
    }
    return Position(frame, registers.rsp, registers.rbp, others)
