"""The commands that list what the kernel has of its own: ``bpf``."""

from collections.abc import Iterable, Sequence
from typing import Final

from qvmi.cli.exit_code import ExitCode
from qvmi.cli.listings import Inhabited, looked, show
from qvmi.cli.output import Output
from qvmi.cli.table import Column
from qvmi.semantics.rows.bpf import BpfProgram

__all__ = ["bpf"]

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


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words) or "-"
