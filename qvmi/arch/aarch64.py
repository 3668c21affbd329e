"""The registers of an aarch64 vCPU in AArch64 state, as QEMU's gdbstub tells them.

References: Arm Architecture Reference Manual (DDI 0487), C5.2 (PSTATE, SPSR), D19.2 (system registers:
TTBR0_EL1, TTBR1_EL1, TCR_EL1, SCTLR_EL1, MAIR_EL1, ID_AA64MMFR0_EL1 …); QEMU ``gdb-xml/aarch64-core.xml``,
``target/arm/gdbstub.c`` and ``target/arm/helper.c``, where registers that AArch32 shares keep its name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

from qvmi.addr import Va
from qvmi.errors import GdbstubProtocolError

__all__ = ["SYSTEM_REGISTERS", "Registers", "registers_of_stub"]

_GENERAL: Final = tuple(f"x{number}" for number in range(31))
_CORE: Final = (*_GENERAL, "sp", "pc", "cpsr")

_EL_SHIFT: Final = 2
_SCTLR_MMU: Final = 1
_PSTATE_AARCH32: Final = 1 << 4
_T1SZ_SHIFT: Final = 16
_SIZE_MASK: Final = 0x3F


@dataclass(frozen=True, slots=True)
class Registers:
    """This is what one aarch64 vCPU held at one moment.

    What the vCPU has not got, or QEMU does not tell, is None.

    Args:
        index: QEMU's number of the vCPU.
        x: the general registers x0 to x30, in order; x30 is the link register.
        sp: the stack pointer in use; `sp_el0` and `sp_el1` are the banked ones.
        cpsr: PSTATE, with the exception level in bits 2..3.
        ttbr0_el1: the page-table root of the lower half of the address space, with ASID and flags.
        ttbr1_el1: as `ttbr0_el1`, of the upper half, where kernels live.
        tcr_el1: sizes and granules of both halves.
        sctlr_el1: system control; bit 0 turns translation on.
        mair_el1: what the memory types in page-table entries mean.
        vbar_el1: the exception vectors; a kernel's are within its image.
        sp_el0: the user's stack pointer; while Linux runs in the kernel, its current ``task_struct``.
        tpidr_el1: Linux keeps the offset of the per-CPU area here.
        id_aa64mmfr0_el1: which granules and how many physical address bits there are.
        id_aa64mmfr1_el1: hierarchical permissions, hardware access flags.
        id_aa64mmfr2_el1: 52-bit virtual addresses.
    """

    index: int
    x: tuple[int, ...]
    sp: Va
    pc: Va
    cpsr: int
    ttbr0_el1: int | None = None
    ttbr1_el1: int | None = None
    tcr_el1: int | None = None
    sctlr_el1: int | None = None
    mair_el1: int | None = None
    vbar_el1: Va | None = None
    sp_el0: Va | None = None
    sp_el1: Va | None = None
    elr_el1: Va | None = None
    spsr_el1: int | None = None
    esr_el1: int | None = None
    far_el1: Va | None = None
    contextidr_el1: int | None = None
    tpidr_el0: int | None = None
    tpidr_el1: int | None = None
    id_aa64pfr0_el1: int | None = None
    id_aa64mmfr0_el1: int | None = None
    id_aa64mmfr1_el1: int | None = None
    id_aa64mmfr2_el1: int | None = None

    @property
    def exception_level(self) -> int:
        """This is the level that runs: 0 is user mode, 1 the kernel."""
        return self.cpsr >> _EL_SHIFT & 3

    @property
    def aarch32(self) -> bool:
        """This tells whether 32-bit code runs, whose registers are the lower halves of these."""
        return bool(self.cpsr & _PSTATE_AARCH32)

    @property
    def paging(self) -> bool:
        """This tells whether addresses of levels 0 and 1 are translated (SCTLR_EL1.M)."""
        return bool((self.sctlr_el1 or 0) & _SCTLR_MMU)

    @property
    def t0sz(self) -> int | None:
        """This is how many upper bits the lower half's addresses do not use; None where not told."""
        return None if self.tcr_el1 is None else self.tcr_el1 & _SIZE_MASK

    @property
    def t1sz(self) -> int | None:
        """This is as `t0sz`, for the upper half."""
        return None if self.tcr_el1 is None else self.tcr_el1 >> _T1SZ_SHIFT & _SIZE_MASK


_SYSTEM: Final = tuple(
    field.name.upper() for field in fields(Registers) if field.name.endswith(("_el0", "_el1"))
)
# QEMU defines these once for both states, under the shorter name.
_SHARED: Final[Mapping[str, str]] = {"VBAR": "VBAR_EL1", "SCTLR": "SCTLR_EL1"}

SYSTEM_REGISTERS: Final = frozenset({*_SYSTEM, *_SHARED})
"""The names by which the gdbstub is asked for the system registers of `Registers`."""


def registers_of_stub(index: int, values: Mapping[str, int]) -> Registers:
    """This is what the gdbstub tells of one vCPU, by the names of its target description.

    Raises:
        GdbstubProtocolError: a general register is missing.
    """
    missing = [name for name in _CORE if name not in values]
    if missing:
        raise GdbstubProtocolError("g", f"vCPU {index}: no {', '.join(missing)}")
    system = {
        _SHARED.get(name, name).lower(): values[name] for name in SYSTEM_REGISTERS if name in values
    }
    return Registers(
        index,
        tuple(values[name] for name in _GENERAL),
        Va(values["sp"]),
        Va(values["pc"]),
        values["cpsr"],
        **system,  # type: ignore[arg-type] # Va is int, and the names are those of the fields
    )
