"""The command that shows the vCPUs' registers: ``regs``."""

from collections.abc import Sequence
from operator import itemgetter
from typing import Final

from qvmi.arch.x86_64 import Registers
from qvmi.cli.exit_code import ExitCode
from qvmi.cli.output import Output
from qvmi.cli.table import Column, table_of
from qvmi.errors import UsageError
from qvmi.machine.machine import Machine
from qvmi.semantics.guest_os import Listing

__all__ = ["LINES", "regs"]

LINES: Final = (
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
"""The registers of one vCPU as they are shown, by their names in :class:`Registers`."""

Cells = tuple[str, ...]

_CELLS: Final = 2 * max(len(names) for names in LINES)
_COLUMNS: Final[Sequence[Column[Cells]]] = tuple(
    Column("", itemgetter(number)) for number in range(_CELLS)
)


async def regs(machine: Machine, output: Output, *, vcpu: int | None) -> ExitCode:
    """This shows the registers of all vCPUs, or of one."""
    found = await machine.registers()
    shown = [one for one in found if vcpu in {None, one.index}]
    if not shown:
        numbers = ", ".join(str(one.index) for one in found)
        raise UsageError(f"there is no vCPU {vcpu}; this machine has {numbers}")
    if output.json:
        output.document(Listing(tuple(shown), (), machine.view.provenance))
        return ExitCode.FINE
    for one in shown:
        if one is not shown[0]:
            output.line()
        output.line(f"vCPU {one.index}")
        output.table(table_of(_COLUMNS, [_cells(one, names) for names in LINES]))
    return ExitCode.FINE


def _cells(vcpu: Registers, names: Sequence[str]) -> Cells:
    cells = [cell for name in names for cell in (name, _in_words(getattr(vcpu, name)))]
    return (*cells, *[""] * (_CELLS - len(cells)))


def _in_words(value: int | None) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else f"{value:#x}"
