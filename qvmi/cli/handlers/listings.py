"""The commands that list what runs in the guest: ``ps``, ``tree``, ``threads`` and ``modules``."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final, Protocol, TypeVar

import msgspec

from qvmi.cli.exit_code import ExitCode
from qvmi.cli.printing.output import Output
from qvmi.cli.printing.process_tree import ASCII_GUIDES, LINE_GUIDES, Branch, branches
from qvmi.cli.printing.table import Column, table_of
from qvmi.semantics.guest_os import Gap, GuestOS, Listing, Module, Process, Thread
from qvmi.view import Provenance, Taken

__all__ = [
    "Inhabited",
    "looked",
    "modules",
    "ps",
    "report_gaps",
    "report_pause",
    "show",
    "threads",
    "tree",
]

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

    async def query(self, look: Callable[[GuestOS], Listing[Row]]) -> Listing[Row]:
        """This looks at the system that runs in it."""
        ...

    async def capture(self, walk: Callable[[GuestOS], Listing[Row]]) -> Listing[Row]:
        """This looks at it at one moment, for which it stands still."""
        ...


async def ps(machine: Inhabited, output: Output, *, exact: bool) -> ExitCode:
    """This lists the processes."""
    listing = await looked(machine, output, lambda guest: guest.processes(), exact=exact)
    return show(output, listing, _PROCESS)


async def threads(machine: Inhabited, output: Output, *, exact: bool) -> ExitCode:
    """This lists the threads."""
    listing = await looked(machine, output, lambda guest: guest.threads(), exact=exact)
    return show(output, listing, _THREAD)


async def modules(machine: Inhabited, output: Output, *, exact: bool) -> ExitCode:
    """This lists the kernel modules."""
    listing = await looked(machine, output, lambda guest: guest.modules(), exact=exact)
    return show(output, listing, _MODULE)


async def tree(machine: Inhabited, output: Output, *, exact: bool) -> ExitCode:
    """This lists each process below its parent."""
    listing = await looked(machine, output, lambda guest: guest.processes(), exact=exact)
    found = tuple(branches(listing.items))
    if output.json:
        items = tuple(
            msgspec.structs.asdict(branch.process) | {"depth": branch.depth} for branch in found
        )
        output.document(Listing(items, listing.gaps, listing.provenance))
    else:
        output.table(table_of(_tree_columns(output), found))
    return report_gaps(output, listing.gaps)


async def looked(
    machine: Inhabited,
    output: Output,
    walk: Callable[[GuestOS], Listing[Row]],
    *,
    exact: bool,
) -> Listing[Row]:
    """This looks at the guest while it runs, or at one moment, and then says what that has cost it."""
    if not exact:
        return await machine.query(walk)
    listing = await machine.capture(walk)
    report_pause(output, listing.provenance)
    return listing


def report_pause(output: Output, provenance: Provenance) -> None:
    """This tells for how long the guest stood still; a document has it in its provenance."""
    if not output.json and provenance.taken is not Taken.DUMP:
        output.message(f"the guest stood still for {provenance.pause_s * 1000:.1f} ms")


def _tree_columns(output: Output) -> Sequence[Column[Branch]]:
    lines = LINE_GUIDES.child + LINE_GUIDES.last + LINE_GUIDES.passing
    guides = LINE_GUIDES if output.can_show(lines) else ASCII_GUIDES
    return (
        Column("PID", lambda branch: str(branch.process.pid), right=True),
        Column("UID", lambda branch: str(branch.process.uid), right=True),
        Column("S", lambda branch: branch.process.state),
        Column("NAME", lambda branch: branch.indent(guides) + branch.process.name),
    )


def show(output: Output, listing: Listing[Row], columns: Sequence[Column[Row]]) -> ExitCode:
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
    count = "1 gap" if len(gaps) == 1 else f"{len(gaps)} gaps"
    output.message(f"not all could be looked at: {count}", details)
    return ExitCode.NOT_SEEN


def _in_words(gap: Gap) -> str:
    place = "" if gap.address is None else f" at {gap.address:#x}"
    return f"{gap.structure}{place}: {gap.reason}"
