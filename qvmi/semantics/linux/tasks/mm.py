"""Memory of processes: ``mm_struct`` and the page tables it owns.

References: Linux include/linux/mm_types.h; with page-table isolation ``mm_struct.pgd`` is the
kernel half, which maps user memory too (arch/x86/include/asm/pgalloc.h). On aarch64 it is the root of
the lower half alone, which has the same form as the upper one (arch/arm64/include/asm/mmu_context.h).
"""

from struct import Struct
from typing import Final

from qvmi.addr import Pa, Va
from qvmi.errors import MemoryFault, WalkFailed
from qvmi.memory.address_space import AddressSpace
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["auxiliary_vector", "space_of", "user_space"]

_POINTER: Final = Struct("<Q")
_MAX_AUXV: Final = 64
"""Entries; ``AT_VECTOR_SIZE`` has room for fewer than 32."""


def user_space(kernel: AddressSpace, symbols: Symbols, task: Va) -> AddressSpace:
    """This is the address space of one process; on x86-64 the kernel's half is in it too.

    Args:
        kernel: the kernel's address space.
        symbols: of the kernel.
        task: address of a ``task_struct`` of the process.

    Raises:
        WalkFailed: the task has no memory of its own (kernel threads, zombies), or is gone.
        LayoutNotFound: the profile lacks what this needs.
    """
    read = kernel.unpacker(_POINTER)
    try:
        mm = read(task + field_offset(symbols, "task_struct", "mm"))[0]
        if not mm:
            raise WalkFailed("task_struct.mm", f"the task at {task:#x} has no memory of its own")
        pgd = read(mm + field_offset(symbols, "mm_struct", "pgd"))[0]
        return space_of(kernel, Va(pgd))
    except MemoryFault as fault:
        raise WalkFailed("mm_struct.pgd", f"of the task at {task:#x}: {fault}") from fault


def space_of(kernel: AddressSpace, pgd: Va) -> AddressSpace:
    """This is the address space that a ``mm_struct.pgd`` leads to, the half that is the programs'.

    Where both halves have one table, as on x86-64, the kernel's is in it too.

    Raises:
        MemoryFault: no page table can be there.
    """
    root = Pa(kernel.translate(pgd))
    return AddressSpace(kernel.memory, root, geometry=kernel.geometry.of_user())


def auxiliary_vector(kernel: AddressSpace, symbols: Symbols, task: Va) -> tuple[int, ...]:
    """This is what a program was given when it began, as pairs of a type and a value.

    Corresponds to ``mm_struct.saved_auxv``.

    Returns:
        None at all for a kernel thread, a zombie, and what cannot be read.

    Raises:
        LayoutNotFound: the profile lacks what this needs.
    """
    read, at = kernel.unpacker(_POINTER), field_offset(symbols, "mm_struct", "saved_auxv")
    pairs: list[int] = []
    try:
        mm = read(task + field_offset(symbols, "task_struct", "mm"))[0]
        while mm and len(pairs) < 2 * _MAX_AUXV:
            pairs += (read(mm + at)[0], read(mm + at + _POINTER.size)[0])
            if not pairs[-2]:
                return tuple(pairs)
            at += 2 * _POINTER.size
    except MemoryFault:
        pass
    return ()
