"""What of a vCPU's registers says which system runs, and nothing of what it does just now.

Whoever may read memory needs it to understand what is read: where the page tables of the kernel are, how they
translate, and where the kernel handles interrupts. Whose program runs, and at what it is, is not among it.
"""

from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any, Final, TypeVar

from qvmi.addr import Pa
from qvmi.arch.aarch64 import Registers as Aarch64Registers
from qvmi.arch.registers import Registers
from qvmi.arch.x86_64 import Registers as X86Registers

__all__ = ["of_system"]

_OF_X86_64: Final = frozenset(
    {"index", "cr0", "cr3", "cr4", "efer", "idt_base", "idt_limit", "smm"}
)
_OF_AARCH64: Final = frozenset(
    {
        *("index", "ttbr1_el1", "tcr_el1", "sctlr_el1", "mair_el1", "vbar_el1"),
        *("id_aa64pfr0_el1", "id_aa64mmfr0_el1", "id_aa64mmfr1_el1", "id_aa64mmfr2_el1"),
    }
)

_One = TypeVar("_One", X86Registers, Aarch64Registers)


def of_system(vcpus: Iterable[Registers], root: Pa | None) -> tuple[Registers, ...]:
    """These are registers of which only what says which system runs is left; the rest is 0 or None.

    Args:
        vcpus: as they were read.
        root: the kernel's own page table, which stands for that of the process that runs on x86-64; None
            where no kernel is known yet.
    """
    return tuple(
        _of_x86_64(one, root) if isinstance(one, X86Registers) else _left(one, _OF_AARCH64)
        for one in vcpus
    )


def _of_x86_64(vcpu: X86Registers, root: Pa | None) -> X86Registers:
    left = _left(vcpu, _OF_X86_64)
    return left if root is None else replace(left, cr3=int(root))


def _left(vcpu: _One, names: frozenset[str]) -> _One:
    hidden: dict[str, Any] = {
        one.name: _nothing(getattr(vcpu, one.name)) for one in fields(vcpu) if one.name not in names
    }
    return replace(vcpu, **hidden)


def _nothing(value: int | tuple[int, ...] | None) -> int | tuple[int, ...] | None:
    """This stands for a value that is not told."""
    if isinstance(value, tuple):
        return (0,) * len(value)
    return None if value is None else type(value)(0)
