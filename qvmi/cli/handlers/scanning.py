"""The command that searches memory: ``scan``."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from qvmi.cli.exit_code import ExitCode
from qvmi.cli.handlers.listings import report_gaps
from qvmi.cli.printing.output import Output
from qvmi.errors import UsageError
from qvmi.machine.scanning.scan import MORE_HITS, Scan, ScanArea, ScanProgress
from qvmi.machine.scanning.scan_rules import ScanRules
from qvmi.semantics.guest_os import Listing
from qvmi.semantics.rows.scan import Owner, ScanHit

if TYPE_CHECKING:
    from collections.abc import Callable

    from qvmi.cli.printing.progress import ProgressBar

__all__ = ["owner_in_words", "scan"]

_MOST_OWNERS: Final = 4
"""Owners of a hit that are shown; whoever wants all of them takes --json."""
_TITLES: Final = ("ADDRESS", "VIRTUAL", "LENGTH", "RULE", "PATTERN", "DATA", "OWNERS")
_PRINTABLE: Final = range(0x20, 0x7F)


class Scannable(Protocol):
    """This is what the command needs of a machine."""

    def scan(
        self,
        rules: ScanRules,
        *,
        area: ScanArea,
        pid: int | None,
        hits_per_rule: int | None,
        on_progress: "Callable[[ScanProgress], None] | None",
    ) -> Scan:
        """This searches its memory."""
        ...


async def scan(  # noqa: PLR0913 - one for each of its options
    machine: Scannable,
    output: Output,
    *,
    paths: Sequence[str],
    strings: Sequence[str],
    hexes: Sequence[str],
    pid: int | None,
    area: str,
    limit: int | None,
) -> ExitCode:
    """This searches memory, and prints hits as they are found.

    Raises:
        UsageError: the rules are wrong, or there are none.
    """
    rules = _rules(paths, strings, hexes)
    with _bar(output) as bar:
        found = machine.scan(
            rules,
            area=ScanArea(area),
            pid=pid,
            hits_per_rule=limit,
            on_progress=None if bar is None else lambda now: _tell(bar, now),
        )
        items = await (_gathered(found) if output.json else _printed(found, output, bar))
    # Who asked for so many hits knows that there may be more.
    gaps = tuple(gap for gap in found.gaps if limit is None or gap.reason != MORE_HITS)
    if output.json:
        output.document(Listing(items, gaps, found.provenance))
    return report_gaps(output, gaps)


def _rules(paths: Sequence[str], strings: Sequence[str], hexes: Sequence[str]) -> ScanRules:
    if not (paths or strings or hexes):
        raise UsageError("scan for what? Give a file of rules, --string or --hex")
    sources = ScanRules.of_files(map(Path, paths)).sources if paths else ()
    if strings or hexes:
        sources += ScanRules.of_patterns(strings, hexes).sources
    return ScanRules(sources)


@contextmanager
def _bar(output: Output) -> "Iterator[ProgressBar | None]":
    """This shows a bar where a person sees the messages."""
    terminal = output.messages_terminal
    if terminal is None:
        yield None
        return
    from qvmi.cli.printing.progress import ProgressBar

    bar = ProgressBar(terminal, "scanning")
    bar.start()
    try:
        yield bar
    finally:
        bar.stop()


def _tell(bar: "ProgressBar", now: ScanProgress) -> None:
    bar.tell(now.scanned, now.size, now.hits)


async def _gathered(found: Scan) -> tuple[ScanHit, ...]:
    return tuple([hit async for hit in found])


async def _printed(found: Scan, output: Output, bar: "ProgressBar | None") -> tuple[ScanHit, ...]:
    """This prints each hit as it is found; nothing of it is kept."""
    titled = False
    async for hit in found:
        with nullcontext() if bar is None else bar.away():
            if not titled:
                output.line(_in_columns(_TITLES))
                titled = True
            output.line(_in_columns(_cells(hit)))
            output.flush()
    if not titled:
        output.message("0 hits")
    return ()


def _cells(hit: ScanHit) -> tuple[str, ...]:
    owners = [owner_in_words(owner) for owner in hit.owners[:_MOST_OWNERS]]
    if len(hit.owners) > _MOST_OWNERS:
        owners.append(f"{len(hit.owners) - _MOST_OWNERS} more")
    return (
        f"{hit.address:#x}",
        "-" if hit.virtual is None else f"{hit.virtual:#x}",
        str(hit.length),
        hit.rule,
        hit.pattern,
        "".join(chr(byte) if byte in _PRINTABLE else "." for byte in bytes.fromhex(hit.data)),
        # The guest's words come last, where they can move nothing else.
        ", ".join(owners) or "-",
    )


def _in_columns(cells: Sequence[str]) -> str:
    """This is a line of a table whose other lines are not known yet."""
    address, virtual, length, rule, pattern, data, owners = cells
    return (
        f"{address:>12}  {virtual:>18}  {length:>6}  {rule:<16}  {pattern:<8}  {data:<32}  {owners}"
    )


def owner_in_words(owner: Owner) -> str:
    """This is an owner as people read it."""
    words = [owner.kind]
    if owner.name:
        words.append(owner.name)
    if owner.pid is not None:
        words[-1] += f"[{owner.pid}]"
    if owner.offset:
        words[-1] += f"+{owner.offset:#x}"
    if owner.address is not None:
        words.append(f"at {owner.address:#x}")
    return " ".join(words)
