"""The registers that a thread left user mode with, where the kernel has put them.

References: Linux arch/x86/include/asm/processor.h (``task_pt_regs``), arch/x86/include/asm/thread_info.h
(``TOP_OF_KERNEL_STACK_PADDING``: 16 bytes where the kernel knows FRED), arch/x86/include/asm/ptrace.h;
arch/arm64/include/asm/processor.h, arch/arm64/include/uapi/asm/ptrace.h (``user_pt_regs``);
include/linux/elfcore.h (``elf_gregset_t``).
"""

from struct import Struct
from typing import Final

from qvmi.addr import Va
from qvmi.errors import MemoryFault
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["UserRegisters"]

_STACK_SIZES: Final = (1 << 14, 1 << 15)
"""``THREAD_SIZE``, without and with KASAN."""
_PADDINGS: Final = (0, 16)
_X86: Final = Struct("<21Q")
_X86_IP, _X86_CS, _X86_FLAGS, _X86_SS = 16, 17, 18, 20
_USER_CODE: Final = frozenset({0x23, 0x33})
_USER_STACK: Final = 0x2B
_INTERRUPTS: Final = 0x200
_AARCH64: Final = Struct("<34Q")
_PC, _PSTATE = 32, 33
_USER_MODE_MASK: Final = 0xF
_USER_HALF: Final = 1 << 56


class UserRegisters:
    """This reads the registers of threads of one kernel.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.

    Raises:
        SymbolsError: the profile lacks what this needs, or describes no possible layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols) -> None:
        self._is_x86 = symbols.find_field("thread_struct", ("fsbase",)) is not None
        self._read_task = compile_reader(
            space,
            (field_offset(symbols, "task_struct", "stack"), "Q"),
            # an int until it became a byte; its lowest one says it either way
            (field_offset(symbols, "task_struct", "on_cpu"), "B"),
        )
        self._size = symbols.size_of("pt_regs") or 0
        self._read = space.unpacker(_X86 if self._is_x86 else _AARCH64)
        if self._is_x86:
            thread = field_offset(symbols, "task_struct", "thread")
            self._read_bases = compile_reader(
                space,
                (thread + field_offset(symbols, "thread_struct", "fsbase"), "Q"),
                (thread + field_offset(symbols, "thread_struct", "gsbase"), "Q"),
            )

    def of(self, task: Va) -> tuple[int, ...] | None:
        """These are the registers in the order of ``elf_gregset_t``.

        Returns:
            None where a vCPU has them, as it runs the thread, and where none are found.
        """
        try:
            stack, runs = self._read_task(task)
            return None if runs else self._found(task, stack)
        except MemoryFault:
            return None

    def _found(self, task: Va, stack: int) -> tuple[int, ...] | None:
        for size in _STACK_SIZES:
            for padding in _PADDINGS:
                try:
                    values = self._read(stack + size - padding - self._size)
                except MemoryFault:
                    continue
                if self._is_x86 and _is_user_x86(values):
                    return (*values, *self._read_bases(task), 0, 0, 0, 0)
                if not self._is_x86 and _is_user_aarch64(values):
                    return values
        return None


def _is_user_x86(values: tuple[int, ...]) -> bool:
    in_user_mode = (
        values[_X86_CS] & 0xFFFF in _USER_CODE and values[_X86_SS] & 0xFFFF == _USER_STACK
    )
    return in_user_mode and values[_X86_IP] < _USER_HALF and bool(values[_X86_FLAGS] & _INTERRUPTS)


def _is_user_aarch64(values: tuple[int, ...]) -> bool:
    at_el0 = not values[_PSTATE] & _USER_MODE_MASK
    return at_el0 and 0 < values[_PC] < _USER_HALF and 0 < values[_PC - 1] < _USER_HALF
