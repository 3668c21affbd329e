"""The commands that list what runs in the guest: ``ps``, ``tree``, ``threads`` and ``modules``."""

from collections.abc import Sequence
from itertools import islice
from typing import Final, Protocol, TypeVar

import msgspec

from qvmi.cli.exit_code import ExitCode
from qvmi.cli.output import Output
from qvmi.cli.process_tree import ASCII_GUIDES, LINE_GUIDES, Branch, branches
from qvmi.cli.table import Column, table_of
from qvmi.semantics.guest_os import Gap, GuestOS, Listing, Module, Process, Thread

__all__ = ["Inhabited", "modules", "ps", "report_gaps", "threads", "tree"]

Row = TypeVar("Row")

_MAX_GAPS_SHOWN: Final = 20
"""Gaps that are told one by one; whoever wants all of them takes --json."""

_PROCESS: Final[Sequence[Column[Process]]] = (
    Column("PID", lambda process: str(process.pid), right=True),
    Column("PPID", lambda process: str(process.ppid), right=True),
    Column("UID", lambda process: str(process.uid), right=True),
    Column("GID", lambda process: str(process.gid), right=True),
    Column("S", lambda process: process.state),
    Column("KIND", lambda process: "kernel" if process.kernel_thread else "user"),
    Column("START", lambda process: f"{process.start_time_s:.2f}", right=True),
    Column("ADDRESS", lambda process: f"{process.address:#x}"),
    # The guest's word comes last, where it can move nothing else.
    Column("NAME", lambda process: process.name),
)
_THREAD: Final[Sequence[Column[Thread]]] = (
    Column("TID", lambda thread: str(thread.pid), right=True),
    Column("PID", lambda thread: str(thread.tgid), right=True),
    Column("S", lambda thread: thread.state),
    Column("START", lambda thread: f"{thread.start_time_s:.2f}", right=True),
    Column("ADDRESS", lambda thread: f"{thread.address:#x}"),
    Column("NAME", lambda thread: thread.name),
)
_MODULE: Final[Sequence[Column[Module]]] = (
    Column("ADDRESS", lambda module: f"{module.address:#x}"),
    Column("SIZE", lambda module: str(module.size), right=True),
    Column("STATE", lambda module: module.state),
    Column("NAME", lambda module: module.name),
)


class Inhabited(Protocol):
    """This is what these commands need of a machine."""

    @property
    def guest(self) -> GuestOS:
        """This is the system that runs in it."""
        ...


async def ps(machine: Inhabited, output: Output) -> ExitCode:
    """This lists the processes."""
    return _show(output, machine.guest.processes(), _PROCESS)


async def threads(machine: Inhabited, output: Output) -> ExitCode:
    """This lists the threads."""
    return _show(output, machine.guest.threads(), _THREAD)


async def modules(machine: Inhabited, output: Output) -> ExitCode:
    """This lists the kernel modules."""
    return _show(output, machine.guest.modules(), _MODULE)


async def tree(machine: Inhabited, output: Output) -> ExitCode:
    """This lists each process below its parent."""
    listing = machine.guest.processes()
    found = tuple(branches(listing.items))
    if output.json:
        items = tuple(
            msgspec.structs.asdict(branch.process) | {"depth": branch.depth} for branch in found
        )
        output.document(Listing(items, listing.gaps, listing.provenance))
    else:
        output.table(table_of(_tree_columns(output), found))
    return report_gaps(output, listing.gaps)


def _tree_columns(output: Output) -> Sequence[Column[Branch]]:
    lines = LINE_GUIDES.child + LINE_GUIDES.last + LINE_GUIDES.passing
    guides = LINE_GUIDES if output.can_show(lines) else ASCII_GUIDES
    return (
        Column("PID", lambda branch: str(branch.process.pid), right=True),
        Column("UID", lambda branch: str(branch.process.uid), right=True),
        Column("S", lambda branch: branch.process.state),
        Column("NAME", lambda branch: branch.indent(guides) + branch.process.name),
    )


def _show(output: Output, listing: Listing[Row], columns: Sequence[Column[Row]]) -> ExitCode:
    """This prints a listing, and tells what is missing in it."""
    if output.json:
        output.document(listing)
    else:
        output.table(table_of(columns, listing.items))
    return report_gaps(output, listing.gaps)


def report_gaps(output: Output, gaps: Sequence[Gap]) -> ExitCode:
    """This tells what could not be looked at, which decides the exit code."""
    if not gaps:
        return ExitCode.FINE
    details = [_in_words(gap) for gap in islice(gaps, _MAX_GAPS_SHOWN)]
    if len(gaps) > _MAX_GAPS_SHOWN:
        details.append(f"and {len(gaps) - _MAX_GAPS_SHOWN} more; --json tells all")
    output.flush()
    output.message(f"not all could be looked at: {len(gaps)} gaps", details)
    return ExitCode.NOT_SEEN


def _in_words(gap: Gap) -> str:
    place = "" if gap.address is None else f" at {gap.address:#x}"
    return f"{gap.structure}{place}: {gap.reason}"
