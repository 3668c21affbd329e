"""One run of one plugin: its rows, what it failed at, and the files it made."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Final

from volatility3.framework import exceptions, interfaces, plugins

from qvmi.errors import PluginFailed, QvmiError, UsageError
from qvmi.semantics.guest_os import Gap
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.volatility_bridge.context import fresh_context
from qvmi.semantics.volatility_bridge.interruption import Interruption
from qvmi.semantics.volatility_bridge.layers import ScanFailed
from qvmi.semantics.volatility_bridge.plugins import configure, find_plugin
from qvmi.semantics.volatility_bridge.symbol_table import KernelContent
from qvmi.semantics.volatility_bridge.table import MAX_FILES_SIZE, MAX_ROWS, VolatilityFile

__all__ = ["PluginRun", "run_in", "run_plugin"]

_MAX_MESSAGES: Final = 1000
"""Log lines kept of one run; a plugin that stumbles over each of a million pages says the same again."""


@dataclass(frozen=True, slots=True)
class PluginRun:
    """This is what a plugin did.

    Args:
        plugin: its full name.
        context: the guest as it saw it.
        grid: its rows, as Volatility holds them.
        gaps: what it failed at.
        files: that it made.
    """

    plugin: str
    context: Any
    grid: Any
    gaps: tuple[Gap, ...]
    files: tuple[VolatilityFile, ...]


def run_plugin(
    guest: LinuxGuest,
    content: KernelContent,
    name: str,
    options: Mapping[str, object],
    interruption: Interruption,
) -> PluginRun:
    """This runs a plugin on a guest to its end.

    Raises:
        UsageError: there is no such plugin, or it takes no such options.
        PluginFailed: it failed before its first row.
        QvmiError: the guest is not what it was.
    """
    full, plugin = find_plugin(name)
    context = fresh_context(guest, content, interruption)
    configure(context, full, plugin, options)
    return run_in(context, full, plugin, interruption)


def run_in(context: Any, full: str, plugin: Any, interruption: Interruption) -> PluginRun:
    """This runs a plugin that was configured in a context; it raises what `run_plugin` raises."""
    files = _Files()
    with _messages(full) as gaps:
        grid = _rows(_construct(context, full, plugin, files), full, gaps, interruption)
    return PluginRun(full, context, grid, tuple(gaps), files.made())


def _construct(context: Any, name: str, plugin: Any, files: "_Files") -> Any:
    """This makes the plugin, without any search by which Volatility would find out about the guest."""
    try:
        return plugins.construct_plugin(context, [], plugin, "plugins", None, files.handler())
    except exceptions.UnsatisfiedException as error:
        wanted = ", ".join(one.rpartition(".")[2] for one in error.unsatisfied)
        raise UsageError(f"{name} needs the option {wanted}") from error
    except (
        Exception,
        SystemExit,
    ) as error:  # the door to plugins: foreign code, over a hostile guest
        raise PluginFailed(name, _in_words(error)) from error


def _rows(constructed: Any, name: str, gaps: list[Gap], interruption: Interruption) -> Any:
    """This collects the rows; an error behind the first one is a gap."""
    count = 0

    def take(_node: object, _accumulator: object) -> None:
        nonlocal count
        interruption.check()
        count += 1
        if count > MAX_ROWS:
            raise PluginFailed(name, f"it gives more than {MAX_ROWS} rows")

    problem: Exception | None
    try:
        grid = constructed.run()
        problem = grid.populate(take, None, fail_on_errors=False)
    except ScanFailed as failed:
        raise PluginFailed(name, _in_words(failed.cause)) from failed.cause
    except (
        Exception,
        SystemExit,
    ) as error:  # the door to plugins: foreign code, over a hostile guest
        raise PluginFailed(name, _in_words(error)) from error
    if problem is not None and not count:
        raise PluginFailed(name, _in_words(problem)) from problem
    if problem is not None:
        gaps.append(Gap(name, None, _in_words(problem)))
    return grid


def _in_words(error: BaseException) -> str:
    """This tells an error of Volatility's or of the plugin's in its own words."""
    if isinstance(error, PluginFailed):
        return error.problem
    if isinstance(error, QvmiError):
        return str(error)
    return f"{type(error).__name__}: {error}"


@contextmanager
def _messages(name: str) -> Iterator[list[Gap]]:
    """This collects what this thread's plugin logs as a warning or worse: it could not see something."""
    collector = _Collector(name)
    logger = logging.getLogger("volatility3")
    logger.addHandler(collector)
    try:
        yield collector.gaps
    finally:
        logger.removeHandler(collector)


class _Collector(logging.Handler):
    """This makes gaps of log lines."""

    def __init__(self, name: str) -> None:
        super().__init__(logging.WARNING)
        self._name = name
        # Of this thread, as records know it: nothing in this room may import threading.
        self._thread = logging.LogRecord("", 0, "", 0, "", None, None).thread
        self.gaps: list[Gap] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread and len(self.gaps) < _MAX_MESSAGES:
            self.gaps.append(Gap(self._name, None, record.getMessage()))


@dataclass(slots=True)
class _Files:
    """These are the files that a plugin makes, in memory."""

    open: list["_HeldFile"] = field(default_factory=list)

    def handler(self) -> type:
        """This is the class that the plugin opens its files with."""
        return type("HeldFile", (_HeldFile,), {"_files": self.open})

    def made(self) -> tuple[VolatilityFile, ...]:
        """These are the files by name and content."""
        return tuple(VolatilityFile(one.preferred_filename, one.content) for one in self.open)


class _HeldFile(BytesIO, interfaces.plugins.FileHandlerInterface):
    """This is one file; it keeps its content when it is closed."""

    _files: list["_HeldFile"]

    def __init__(self, filename: str) -> None:
        BytesIO.__init__(self)
        interfaces.plugins.FileHandlerInterface.__init__(self, filename)
        self.content = b""
        self._files.append(self)

    def write(self, data: Any) -> int:
        if sum(one.size for one in self._files) + len(data) > MAX_FILES_SIZE:
            raise OSError(f"the files of this plugin have more than {MAX_FILES_SIZE >> 20} MiB")
        return super().write(data)

    @property
    def size(self) -> int:
        """This is the size so far, in bytes."""
        return len(self.content) if self.closed else self.getbuffer().nbytes

    def close(self) -> None:
        if not self.closed:
            self.content = self.getvalue()
            super().close()
