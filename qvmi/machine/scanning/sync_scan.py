"""A scan for scripts without an event loop."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Sequence
from typing import Any

from qvmi.machine.scanning.scan import Scan
from qvmi.semantics.guest_os import Gap
from qvmi.semantics.rows.scan import ScanHit
from qvmi.view import Provenance

__all__ = ["SyncScan"]


class SyncScan:
    """This is one scan; iterating it does it, and gives the hits as they are found.

    Args:
        scan: which is done.
        run: runs a coroutine on the machine's event loop and waits for it.
    """

    def __init__(self, scan: Scan, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._scan = scan
        self._run = run

    @property
    def gaps(self) -> Sequence[Gap]:
        """These are what could not be scanned or told so far, each once."""
        return self._scan.gaps

    @property
    def provenance(self) -> Provenance:
        """This is how it was taken."""
        return self._scan.provenance

    def __iter__(self) -> Iterator[ScanHit]:
        """This scans, from the beginning; whoever stops listening ends it."""
        hits = aiter(self._scan)
        try:
            while (hit := self._run(_next(hits))) is not None:
                yield hit
        finally:
            self._run(_end(hits))


async def _next(hits: AsyncIterator[ScanHit]) -> ScanHit | None:
    return await anext(hits, None)


async def _end(hits: AsyncIterator[ScanHit]) -> None:
    if isinstance(hits, AsyncGenerator):
        await hits.aclose()
