"""The commands that list what the kernel has of its own: ``bpf`` and ``percpu``."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from qvmi.cli.exit_code import ExitCode
from qvmi.cli.handlers.listings import Inhabited, looked, report_gaps, report_pause, show
from qvmi.cli.printing.output import Output
from qvmi.cli.printing.table import Column
from qvmi.machine.machine import Machine
from qvmi.semantics.rows.bpf import BpfProgram
from qvmi.symbols.btf_values import Value

__all__ = ["bpf", "percpu"]

_INDENT: Final = "  "
_LARGE: Final = 1 << 32
_DIGITS: Final = 64
"""Of 32 bytes, which share a line."""

# The guest's words come last, where they can move nothing else.
_PROGRAM: Final[Sequence[Column[BpfProgram]]] = (
    Column("ID", lambda program: str(program.id), right=True),
    Column("TYPE", lambda program: program.type),
    Column("TAG", lambda program: program.tag),
    Column("LOADED", lambda program: f"{program.load_time_s:.2f}", right=True),
    Column("UID", lambda program: str(program.uid), right=True),
    Column("INSNS", lambda program: str(program.instructions), right=True),
    Column(
        "JIT", lambda program: "-" if program.jit_address is None else f"{program.jit_address:#x}"
    ),
    Column("SIZE", lambda program: str(program.jit_size), right=True),
    Column("PIDS", lambda program: _listed(map(str, program.pids))),
    Column("ATTACHED", lambda program: _listed(program.attached)),
    Column("TARGET", lambda program: program.target or "-"),
    Column("MAPS", lambda program: _listed(f"{one.id}:{one.name}" for one in program.maps)),
    Column("NAME", lambda program: program.name),
)


async def bpf(machine: Inhabited, output: Output, *, exact: bool) -> ExitCode:
    """This lists the eBPF programs that are loaded."""
    listing = await looked(machine, output, lambda guest: guest.bpf_programs(), exact=exact)
    return show(output, listing, _PROGRAM)


async def percpu(
    machine: Machine, output: Output, *, name: str, cpu: int | None, exact: bool
) -> ExitCode:
    """This prints what each CPU's copy of a variable holds.

    Raises:
        SymbolsError, UsageError: there is no such variable, or no such CPU.
    """
    listing = await (machine.capture if exact else machine.query)(
        lambda guest: guest.per_cpu(name, cpu)
    )
    if exact:
        report_pause(output, listing.provenance)
    if output.json:
        output.document(listing)
    else:
        for row in listing:
            what = row.type or f"{row.size} bytes"
            output.line(f"CPU {row.cpu} at {row.address:#x}: {what}")
            for line in _lines(row.value, _INDENT):
                output.line(line)
    return report_gaps(output, listing.gaps)


def _lines(value: Value, indent: str, name: str = "") -> Iterator[str]:
    """This iterates a value's lines, a member each; numbers in a list share one."""
    before = f"{indent}{name}: " if name else indent
    if isinstance(value, dict):
        if name:
            yield f"{indent}{name}:"
        for member, inner in value.items():
            yield from _lines(inner, indent + _INDENT * bool(name), member)
    elif isinstance(value, list) and any(isinstance(one, dict | list) for one in value):
        for number, one in enumerate(value):
            yield from _lines(one, indent, f"{name}[{number}]")
    elif isinstance(value, list):
        yield before + ", ".join(map(_shown, value))
    elif isinstance(value, str):
        yield from (before + value[at : at + _DIGITS] for at in range(0, len(value), _DIGITS))
    else:
        yield before + _shown(value)


def _shown(value: Value) -> str:
    """This is one value; what is as large as an address is written as one."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= _LARGE:
        return f"{value:#x}"
    return str(value)


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words) or "-"
