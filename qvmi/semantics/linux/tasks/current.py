"""The task that a vCPU runs.

References: Linux arch/x86/include/asm/current.h and asm/percpu.h (``current_task``; from 6.2 to 6.14
``pcpu_hot.current_task``), arch/arm64/include/asm/current.h (``sp_el0``).
"""

from struct import Struct
from typing import Final

from qvmi.addr import Va
from qvmi.arch import aarch64, x86_64
from qvmi.errors import SymbolNotFound
from qvmi.memory.address_space import AddressSpace
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["current_task"]

_POINTER: Final = Struct("<Q")
_ADDRESSES: Final = 1 << 64
_KERNEL_HALF: Final = 1 << 63


def current_task(
    space: AddressSpace, symbols: Symbols, registers: x86_64.Registers | aarch64.Registers
) -> Va | None:
    """This is the address of the ``task_struct`` that a vCPU runs.

    Returns:
        None while it runs user mode; on aarch64 also where the system registers are not known.

    Raises:
        SymbolsError: the kernel's symbols do not tell where it is kept.
        MemoryFault: it cannot be read.
    """
    if isinstance(registers, aarch64.Registers):
        task = registers.sp_el0
        # In the first instructions behind an exception, and in the last ones before user mode goes
        # on, SP_EL0 is the user's stack pointer.
        return task if registers.exception_level and task and task & _KERNEL_HALF else None
    base = registers.gs_base
    # In the first instructions behind a system call or interrupt GS is the user's still.
    if registers.cpl or base is None or not base & _KERNEL_HALF:
        return None
    at = Va((base + _per_cpu_offset(symbols)) % _ADDRESSES)
    return Va(_POINTER.unpack(space.read(at, _POINTER.size))[0])


def _per_cpu_offset(symbols: Symbols) -> int:
    """This is where a vCPU keeps it, from its GS base."""
    hot = symbols.find("pcpu_hot")
    if hot is not None:
        return hot + field_offset(symbols, "pcpu_hot", "current_task")
    for name in ("current_task", "const_current_task"):
        at = symbols.find(name)
        if at is not None:
            return at
    raise SymbolNotFound("current_task")
