"""A scan of guest memory for patterns: which memory, in which windows, and whose the hits are."""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

from qvmi.errors import SymbolsError, UnknownGuest
from qvmi.machine.scanning.scan_rules import ScanRules
from qvmi.machine.scanning.scan_target import ScanTarget
from qvmi.machine.scanning.scanner import ScannedWindow, Scanner, require_yara
from qvmi.machine.scanning.window_source import WindowSource, window_source
from qvmi.memory.stretch import Stretch, StretchWindow, data_stretches, windows
from qvmi.semantics.guest_os import Gap
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.linux.scan_area import cached_stretches, kernel_stretches, process_stretches
from qvmi.semantics.rows.scan import Owner, ScanHit

__all__ = ["BEFORE", "HITS_PER_RULE", "LONGEST", "Scan", "ScanArea", "ScanProgress"]

HITS_PER_RULE: Final = 10_000
"""Hits of one rule that are told unless told otherwise: one that is everywhere has millions."""
LONGEST: Final = 1 << 16
"""Bytes of a match that are looked at and told at most. Windows overlap by as much, so that what is found
does not depend on where they end; a match that needs more bytes than these may be missed."""
BEFORE: Final = 1 << 12
"""Bytes before a window that are seen with it: whether a word begins there depends on one or two."""
_IN_FLIGHT: Final = 2
"""Requests that the scanning process has: it need not wait for the next while hits are looked up here."""
_MAX_IN_REQUEST: Final = 256
"""Windows of one request: of memory in small pieces there are many."""
_MAX_FAILED: Final = 16
"""Windows that may take too long before the rest is given up: each has cost some seconds."""
_MAX_GAPS: Final = 1000
"""Gaps that are kept: a guest that lies may have one for each hit."""
MORE_HITS: Final = "it has more hits than are told"
"""The reason of the gap of a rule with more hits than a scan may tell."""
_LOOK_S: Final = 600.0
"""How long it may take to find out what to scan, or whose hits are. Of a guest with a terabyte of RAM the
use of each page takes minutes to read, as do owners where QEMU's monitor is asked for each word."""


class ScanArea(StrEnum):
    """This is which memory is scanned, where it is not that of one process."""

    RAM = "ram"
    """All of it, in the order of physical addresses."""
    PAGE_CACHE = "page cache"
    """What of files is in memory, in the order of each file."""
    KERNEL = "kernel"
    """What is the kernel's own: neither programs' memory nor files nor free."""


@dataclass(frozen=True, slots=True)
class ScanProgress:
    """This is how far a scan is.

    Args:
        scanned: bytes that were scanned.
        size: bytes that are to be.
        hits: that were found.
    """

    scanned: int
    size: int
    hits: int


class Scan:
    """This is one scan; iterating it does it, and gives the hits as they are found.

    Args:
        target: what is scanned.
        rules: what is looked for.
        area: where, if ``pid`` is None; all RAM unless told otherwise.
        pid: the process whose memory is scanned, in the order in which it sees it.
        hits_per_rule: so many hits of a rule are told; that there were more is a gap.
        on_progress: is told how far it is.

    Attributes:
        provenance: how it was taken.
    """

    def __init__(
        self,
        target: ScanTarget,
        rules: ScanRules | str | Path,
        *,
        area: ScanArea | None = None,
        pid: int | None = None,
        hits_per_rule: int | None = None,
        on_progress: Callable[[ScanProgress], None] | None = None,
    ) -> None:
        require_yara()
        self._target = target
        self._rules = ScanRules.of(rules)
        self._area = area or ScanArea.RAM
        self._pid = pid
        self._hits_per_rule = HITS_PER_RULE if hits_per_rule is None else hits_per_rule
        self._on_progress = on_progress
        self._progress = ScanProgress(0, 0, 0)
        self._failed = 0
        self._noted: dict[Gap, None] = {}
        self.provenance = target.view.provenance

    @property
    def gaps(self) -> list[Gap]:
        """These are what could not be scanned or told so far, each once."""
        return list(self._noted)

    def __aiter__(self) -> AsyncIterator[ScanHit]:
        """This scans, from the beginning."""
        return self._hits()

    async def _hits(self) -> AsyncGenerator[ScanHit, None]:
        """This scans; whoever stops listening ends it."""
        source = window_source(self._target.memory, self._target.query_view)
        try:
            scanner = await Scanner.start(
                self._rules,
                source.descriptors,
                hits_per_rule=self._hits_per_rule,
                longest=LONGEST,
            )
            try:
                async with aclosing(self._scanned(scanner, source)) as hits:
                    async for hit in hits:
                        yield hit
            finally:
                await scanner.close()
        finally:
            source.close()

    async def _scanned(
        self, scanner: Scanner, source: WindowSource
    ) -> AsyncGenerator[ScanHit, None]:
        """This has all windows scanned, and gives the hits in them."""
        view = self._target.view
        stretches = await self._stretches()
        self._tell(0, size=sum(stretch.size for stretch in stretches))
        cut = windows(stretches, source.request_size, before=BEFORE, behind=LONGEST)
        waiting: deque[list[StretchWindow]] = deque()
        for batch in _batches(cut, source.request_size):
            orders, gaps = await source.orders(batch)
            self._note(gaps)
            scanner.send(orders)
            waiting.append(batch)
            if len(waiting) >= _IN_FLIGHT:
                for hit in await self._answered(scanner, waiting.popleft()):
                    yield hit
            if self._failed >= _MAX_FAILED:
                self._note((Gap("scan", None, "the rest is not scanned: the rules took too long"),))
                break
        while waiting:
            for hit in await self._answered(scanner, waiting.popleft()):
                yield hit
        view.require_current()

    async def _stretches(self) -> Sequence[Stretch]:
        """This finds out what is to be scanned."""
        area, pid = self._area, self._pid
        if pid is None and area is ScanArea.RAM:
            return await self._target.query_view(lambda view: list(data_stretches(view.memory)))

        def plan(guest: LinuxGuest) -> tuple[list[Stretch], list[Gap]]:
            if pid is not None:
                return process_stretches(guest, pid)
            return kernel_stretches(guest) if area is ScanArea.KERNEL else cached_stretches(guest)

        stretches, gaps = await self._target.query(plan, timeout_s=_LOOK_S)
        self._note(gaps)
        return stretches

    async def _answered(
        self, scanner: Scanner, batch: Sequence[StretchWindow]
    ) -> Sequence[ScanHit]:
        """This waits for the answer to a request, and finds out whose the hits are."""
        hits: list[ScanHit] = []
        for window, answer in zip(batch, await scanner.receive(), strict=True):
            self._note(_missing(window, answer))
            self._failed += bool(answer.problem)
            places = window.places(found.offset for found in answer.hits)
            hits += [
                ScanHit(found.rule, found.pattern, pa, va, found.length, found.data, ())
                for found, (pa, va) in zip(answer.hits, places, strict=True)
            ]
        owned = await self._with_owners(hits) if hits else ()
        self._tell(sum(window.own for window in batch), hits=len(owned))
        return owned

    async def _with_owners(self, hits: Sequence[ScanHit]) -> Sequence[ScanHit]:
        """This tells whose the hits are; a guest that nobody understands leaves that open."""

        def look(guest: LinuxGuest) -> tuple[list[tuple[Owner, ...]], list[Gap]]:
            owners = guest.page_owners()
            return [owners.of(hit.address) for hit in hits], owners.gaps

        try:
            owners, gaps = await self._target.query(look, timeout_s=_LOOK_S)
        except (UnknownGuest, SymbolsError) as error:
            self._note((Gap("owners", None, f"whose the memory is nobody can tell: {error}"),))
            return hits
        self._note(gaps)
        return [
            msgspec.structs.replace(hit, owners=its) for hit, its in zip(hits, owners, strict=True)
        ]

    def _note(self, gaps: Iterable[Gap]) -> None:
        """This keeps gaps, each once, and no more than anybody reads."""
        for gap in gaps:
            if len(self._noted) < _MAX_GAPS:
                self._noted[gap] = None

    def _tell(self, scanned: int, *, size: int | None = None, hits: int = 0) -> None:
        """This tells whoever wants to know how far it is."""
        before = self._progress
        self._progress = ScanProgress(
            before.scanned + scanned, before.size if size is None else size, before.hits + hits
        )
        if self._on_progress is not None:
            self._on_progress(self._progress)


def _batches(cut: Iterable[StretchWindow], most: int) -> Iterator[list[StretchWindow]]:
    """This gathers windows, so that memory in small pieces does not take a request for each."""
    batch: list[StretchWindow] = []
    size = 0
    for window in cut:
        if batch and (size + window.own > most or len(batch) >= _MAX_IN_REQUEST):
            yield batch
            batch, size = [], 0
        batch.append(window)
        size += window.own
    if batch:
        yield batch


def _missing(window: StretchWindow, answer: ScannedWindow) -> Iterator[Gap]:
    """These are the gaps that one window leaves."""
    if answer.problem:
        start = next(window.places((0,)))
        where = f"{window.own} bytes at {start[0] if start[1] is None else start[1]:#x}"
        yield Gap("scan", start[1], f"{where} are not scanned: {answer.problem}")
    for rule in answer.cut:
        yield Gap(f"rule {rule}", None, MORE_HITS)
