"""A bar that shows how far something is, to a person alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["ProgressBar"]

_UNKNOWN: Final = None


class ProgressBar:
    """This is a bar on a terminal, which is gone when it ends.

    Args:
        terminal: where it is drawn.
        what: is being done.
    """

    def __init__(self, terminal: TextIO, what: str) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TimeRemainingColumn(),
            TextColumn("{task.fields[hits]} hits"),
            console=Console(file=terminal, markup=False, emoji=False),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._progress.add_task(what, total=_UNKNOWN, hits=0)
        self._shown = False

    def start(self) -> None:
        """This shows it."""
        self._progress.start()
        self._shown = True

    def stop(self) -> None:
        """This takes it away."""
        if self._shown:
            self._progress.stop()
            self._shown = False

    def tell(self, done: int, size: int, hits: int) -> None:
        """This says how far it is."""
        self._progress.update(self._task, completed=done, total=size, hits=hits)

    @contextmanager
    def away(self) -> Iterator[None]:
        """This takes it away for a block that writes to the same terminal."""
        shown = self._shown
        self.stop()
        try:
            yield
        finally:
            if shown:
                self.start()
