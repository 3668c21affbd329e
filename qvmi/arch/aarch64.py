"""The registers of an aarch64 vCPU, as QEMU's human monitor prints them and its gdbstub tells them.

References: Arm Architecture Reference Manual (DDI 0487), C5.2 (PSTATE, SPSR), D19.2 (system registers:
TTBR0_EL1, TTBR1_EL1, TCR_EL1, SCTLR_EL1, MAIR_EL1, ID_AA64MMFR0_EL1 …); QEMU ``gdb-xml/aarch64-core.xml``,
``target/arm/gdbstub.c`` and ``target/arm/helper.c``, where registers that AArch32 shares keep its name;
``target/arm/cpu.c`` (``aarch64_cpu_dump_state``, ``arm_cpu_dump_state``), 7.2 to 10.1.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

from qvmi.addr import Pa, Va
from qvmi.arch.geometry import Geometry, Half, aarch64_geometry
from qvmi.arch.register_dump import malformed, vcpu_dumps
from qvmi.errors import GdbstubProtocolError

__all__ = ["SYSTEM_REGISTERS", "Registers", "is_dump", "parse_registers", "registers_of_stub"]

_COUNT: Final = 31
_GENERAL: Final = tuple(f"x{number}" for number in range(_COUNT))
_CORE: Final = (*_GENERAL, "sp", "pc", "cpsr")

_EL_SHIFT: Final = 2
_SCTLR_MMU: Final = 1
_PSTATE_AARCH32: Final = 1 << 4
_T1SZ_SHIFT: Final = 16
_SIZE_MASK: Final = 0x3F
_ADDRESS_BITS: Final = 64
_TG1_SHIFT: Final = 30
_TG1_4_KIB: Final = 2
_TCR_DS: Final = 1 << 59
_TTBR_BITS: Final = 48
"""Above them is the ASID; in the lowest ones are flags, with FEAT_LPA2 the address's bits 51..48 too."""
_TTBR_ADDRESS: Final = (1 << _TTBR_BITS) - 0x40
_TTBR_HIGH_SHIFT: Final = 2


@dataclass(frozen=True, slots=True)
class Registers:
    """This is what one aarch64 vCPU held at one moment.

    What the vCPU has not got, or QEMU does not tell, is None. Its monitor tells none of the system
    registers; its gdbstub, which stops the guest for it, tells them all.

    Args:
        index: QEMU's number of the vCPU.
        x: the general registers x0 to x30, in order; x30 is the link register. Of 32-bit code the
            monitor tells only what it can see, x0 to x14.
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
    def root_register(self) -> int | None:
        """This is the register that holds the kernel's page-table root; None where it is not told."""
        return self.ttbr1_el1

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

    @property
    def upper_tables(self) -> tuple[Pa, Geometry] | None:
        """These are the root of the upper half and how it is translated.

        Returns:
            None where the registers are not known, or mean other pages than of 4 KiB.
        """
        ttbr, tcr = self.ttbr1_el1, self.tcr_el1
        if ttbr is None or tcr is None or tcr >> _TG1_SHIFT & 3 != _TG1_4_KIB:
            return None
        lpa2 = bool(tcr & _TCR_DS)
        va_bits = _ADDRESS_BITS - (tcr >> _T1SZ_SHIFT & _SIZE_MASK)
        high = (ttbr >> _TTBR_HIGH_SHIFT & 0xF) << _TTBR_BITS if lpa2 else 0
        try:
            geometry = aarch64_geometry(va_bits, Half.UPPER, lpa2=lpa2)
        except ValueError:
            return None
        return Pa(ttbr & _TTBR_ADDRESS | high), geometry


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


# ` PC=ffff… X00=0000…`, ` SP=ffff…`, `PSTATE=414000c5 -Z-- EL1h`; in 32-bit code `R15=0000abcd`, `PSR=…`.
_VALUE: Final = re.compile(r"\b(PC|SP|PSTATE|PSR|[XR][0-9]{2})=([0-9a-f]{8}(?:[0-9a-f]{8})?)\b")
_FIRST: Final = re.compile(r"\s*(?: PC=[0-9a-f]{16} X00=|R00=)")
# What follows are vector registers, up to 20 KB of them, whose names are others.
_LAST: Final = re.compile(r"^(?:PSTATE|PSR)=.*$", re.MULTILINE)
_COUNT_32: Final = 15


def is_dump(text: str) -> bool:
    """This tells whether ``info registers -a`` was answered for a machine of this architecture."""
    dumps = vcpu_dumps(text)
    return all(_FIRST.match(dump) for _, dump in dumps)


def parse_registers(text: str) -> tuple[Registers, ...]:
    """This reads the answer to ``info registers -a``, in 64-bit and in 32-bit layout.

    Returns:
        The vCPUs in the order QEMU printed them; at least one. They have no system registers.

    Raises:
        QmpProtocolError: a register is missing, or the text is not about aarch64 vCPUs at all.
    """
    return tuple(_parse_vcpu(index, dump) for index, dump in vcpu_dumps(text))


def _parse_vcpu(index: int, dump: str) -> Registers:
    last = _LAST.search(dump)
    if last is None:
        raise malformed(f"CPU#{index}: no PSTATE; is this an aarch64 guest?")
    values = {name: int(digits, 16) for name, digits in _VALUE.findall(dump[: last.end()])}
    narrow = "PSTATE" not in values
    letter, count = ("R", _COUNT_32) if narrow else ("X", _COUNT)
    sp, pc, state = ("R13", "R15", "PSR") if narrow else ("SP", "PC", "PSTATE")
    try:
        general = tuple(values[f"{letter}{number:02}"] for number in range(count))
        return Registers(index, general, Va(values[sp]), Va(values[pc]), values[state])
    except KeyError as error:
        raise malformed(f"CPU#{index}: no {error.args[0]}") from error
