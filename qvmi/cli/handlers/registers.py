"""The command that shows the vCPUs' registers: ``regs``."""

from collections.abc import Sequence
from operator import itemgetter
from typing import Final

from qvmi.arch import aarch64
from qvmi.arch.registers import Registers
from qvmi.cli.exit_code import ExitCode
from qvmi.cli.handlers.listings import report_pause
from qvmi.cli.printing.output import Output
from qvmi.cli.printing.table import Column, table_of
from qvmi.errors import UsageError
from qvmi.machine.machine import Machine
from qvmi.semantics.guest_os import Listing

__all__ = ["AARCH64_LINES", "X86_64_LINES", "regs"]

X86_64_LINES: Final = (
    ("rip", "rsp"),
    ("rax", "rbx"),
    ("rcx", "rdx"),
    ("rsi", "rdi"),
    ("rbp", "rflags"),
    ("r8", "r9"),
    ("r10", "r11"),
    ("r12", "r13"),
    ("r14", "r15"),
    ("cr0", "cr2"),
    ("cr3", "cr4"),
    ("efer", "cpl"),
    ("cs", "ss"),
    ("ds", "es"),
    ("fs", "fs_base"),
    ("gs", "gs_base"),
    ("kernel_gs_base", "smm"),
    ("gdt_base", "gdt_limit"),
    ("idt_base", "idt_limit"),
    ("halted",),
)
"""The registers of one vCPU as they are shown, by their names in :class:`x86_64.Registers`."""

AARCH64_LINES: Final = (
    ("pc", "sp"),
    *((f"x{number}", f"x{number + 1}") for number in range(0, 30, 2)),
    ("x30", "cpsr"),
    ("ttbr0_el1", "ttbr1_el1"),
    ("tcr_el1", "sctlr_el1"),
    ("mair_el1", "vbar_el1"),
    ("sp_el0", "sp_el1"),
    ("elr_el1", "spsr_el1"),
    ("esr_el1", "far_el1"),
    ("tpidr_el0", "tpidr_el1"),
    ("contextidr_el1", "id_aa64pfr0_el1"),
    ("id_aa64mmfr0_el1", "id_aa64mmfr1_el1"),
    ("id_aa64mmfr2_el1",),
)
"""As `X86_64_LINES`; the general registers are those in ``x``."""

Cells = tuple[str, ...]

_CELLS: Final = 4
_COLUMNS: Final[Sequence[Column[Cells]]] = tuple(
    Column("", itemgetter(number)) for number in range(_CELLS)
)


async def regs(machine: Machine, output: Output, *, vcpu: int | None, system: bool) -> ExitCode:
    """This shows the registers of all vCPUs, or of one.

    Raises:
        PauseError, AttachError, UsageError: system registers are wanted, and cannot be had.
    """
    view = await machine.system_registers() if system else None
    found = await machine.registers() if view is None else view.vcpus
    provenance = machine.view.provenance if view is None else view.provenance
    shown = [one for one in found if vcpu in {None, one.index}]
    if not shown:
        numbers = ", ".join(str(one.index) for one in found)
        raise UsageError(f"there is no vCPU {vcpu}; this machine has {numbers}")
    if output.json:
        output.document(Listing(tuple(shown), (), provenance))
        return ExitCode.FINE
    for one in shown:
        if one is not shown[0]:
            output.line()
        output.line(f"vCPU {one.index}")
        lines = AARCH64_LINES if isinstance(one, aarch64.Registers) else X86_64_LINES
        output.table(table_of(_COLUMNS, [_cells(one, names) for names in lines]))
    if system:
        report_pause(output, provenance)
    return ExitCode.FINE


def _cells(vcpu: Registers, names: Sequence[str]) -> Cells:
    cells = [cell for name in names for cell in (name, _in_words(_value(vcpu, name)))]
    return (*cells, *[""] * (_CELLS - len(cells)))


def _value(vcpu: Registers, name: str) -> int | None:
    """This is what a register holds; None where it is not told."""
    if isinstance(vcpu, aarch64.Registers) and name[:1] == "x":
        number = int(name[1:])
        return vcpu.x[number] if number < len(vcpu.x) else None
    value: int | None = getattr(vcpu, name)
    return value


def _in_words(value: int | None) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else f"{value:#x}"
