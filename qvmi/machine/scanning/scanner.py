"""The process that scans, as this one sees it: it is sent windows, and sends what it found in them."""

import asyncio
import logging
import os
import struct
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Self, TypeVar

import msgspec

from qvmi.errors import ScanFailed, UsageError
from qvmi.machine.scanning.scan_rules import ScanRules

__all__ = [
    "COMMAND",
    "ENDS_S",
    "LENGTH",
    "NO_FILE",
    "Compiled",
    "Found",
    "ScannedWindow",
    "Scanner",
    "WindowOrder",
    "check_compiled",
    "require_yara",
]

Message = TypeVar("Message")

_logger = logging.getLogger(__name__)

COMMAND: Final = (sys.executable, "-P", os.fspath(Path(__file__).with_name("scanner_process.py")))
LENGTH: Final = struct.Struct("<I")
"""Of a message, in front of it."""
NO_FILE: Final = -1
"""What stands for a descriptor of a hole; as in ``scanner_process``."""
_MAX_ANSWER: Final = 256 << 20
"""Bytes of an answer: far more than all hits of all rules of one request take."""
_WINDOW_TIMEOUT_S: Final = 10
"""How long the rules may take for one window, which well-made ones scan in 20 ms."""
ENDS_S: Final = 5.0
"""How long a process may take to be gone once it was killed."""


class Found(msgspec.Struct, frozen=True, array_like=True):
    """This is one hit: where in the window's own part, of which rule, and what is there."""

    offset: int
    rule: str
    pattern: str
    length: int
    data: str


class ScannedWindow(msgspec.Struct, frozen=True):
    """This is what was found in one window.

    Args:
        problem: why it was not scanned; empty where it was.
        hits: by their place.
        cut: rules of which this window had more hits than are told.
    """

    problem: str
    hits: tuple[Found, ...]
    cut: tuple[str, ...]


class WindowOrder(msgspec.Struct, frozen=True):
    """This is one window to scan.

    Args:
        pieces: of it: each a descriptor, an offset in what that leads to, and a size.
        skip: bytes of it that are there only for what begins behind them.
        own: bytes behind those in which hits are told.
    """

    pieces: Sequence[tuple[int, int, int]]
    skip: int
    own: int


class Compiled(msgspec.Struct, frozen=True):
    """This is what the compiler has to say of the rules."""

    errors: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    placeless: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Order:
    sources: Sequence[dict[str, str]]
    hits_per_rule: int
    longest: int
    window_timeout_s: int


def require_yara() -> None:
    """This checks that there is something to scan with.

    Raises:
        UsageError: there is not; it says what to install.
    """
    if find_spec("yara_x") is None:
        raise UsageError("scanning needs YARA-X: pip install 'qvmi[yara]'")


class Scanner:
    """This scans windows in a process of its own. Only :meth:`start` makes one."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @classmethod
    async def start(
        cls, rules: ScanRules, descriptors: Sequence[int], *, hits_per_rule: int, longest: int
    ) -> Self:
        """This starts the process and has it compile the rules.

        Args:
            rules: to scan with.
            descriptors: of the files that windows may be in, which it gets.
            hits_per_rule: so many hits of a rule are told.
            longest: bytes that a match is told to have at most.

        Raises:
            UsageError: the rules are wrong, and what about them; or YARA-X is not installed.
            ScanFailed: it cannot be started, or ends.
        """
        require_yara()
        scanner = cls(await _started(descriptors))
        sources = [
            {"text": one.text, "origin": one.origin, "folder": one.folder} for one in rules.sources
        ]
        order = _Order(sources, hits_per_rule, longest, _WINDOW_TIMEOUT_S)
        try:
            scanner._send(order)
            check_compiled(await scanner._receive(Compiled))
        except BaseException:
            await scanner.close()
            raise
        return scanner

    def send(self, windows: Sequence[WindowOrder]) -> None:
        """This has it scan windows; :meth:`receive` gives the answers in the same order."""
        self._send(windows)

    async def receive(self) -> tuple[ScannedWindow, ...]:
        """This waits for the answer to the oldest request that was not answered yet.

        Raises:
            ScanFailed: it has ended.
        """
        return await self._receive(tuple[ScannedWindow, ...])

    async def close(self) -> None:
        """This ends it, whatever it does."""
        with suppress(ProcessLookupError):
            self._process.kill()
        if self._process.stdin is not None:
            self._process.stdin.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(ENDS_S):
                await self._process.wait()

    def _send(self, message: object) -> None:
        """This sends a message, without waiting: it may have to take an answer from us first.

        That it has ended shows when its answer is waited for.
        """
        stdin = self._process.stdin
        assert stdin is not None  # noqa: S101 - it was started with a pipe
        body = msgspec.json.encode(message)
        stdin.write(LENGTH.pack(len(body)) + body)

    async def _receive(self, kind: type[Message]) -> Message:
        stdout = self._process.stdout
        assert stdout is not None  # noqa: S101 - it was started with a pipe
        try:
            size = LENGTH.unpack(await stdout.readexactly(LENGTH.size))[0]
            if size > _MAX_ANSWER:
                raise ScanFailed(f"an answer of {size} bytes")
            return msgspec.json.decode(await stdout.readexactly(size), type=kind)
        except (asyncio.IncompleteReadError, OSError, msgspec.MsgspecError) as error:
            raise self._ended() from error

    def _ended(self) -> ScanFailed:
        return ScanFailed("the process that scans has ended: killed, or out of memory?")


async def _started(descriptors: Sequence[int]) -> Process:
    try:
        return await asyncio.create_subprocess_exec(
            *COMMAND,
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            pass_fds=descriptors,
            start_new_session=True,  # Ctrl-C is for us, who then end it
        )
    except OSError as error:
        raise ScanFailed(f"the process that scans cannot be started: {error}") from error


def check_compiled(compiled: Compiled) -> None:
    """This tells what the compiler said.

    Raises:
        UsageError: that the rules are wrong.
    """
    if compiled.errors:
        raise UsageError("\n".join(compiled.errors))
    for warning in compiled.warnings:
        _logger.warning("%s", warning)
    for name in compiled.placeless:
        _logger.warning("the rule %s has no patterns: it says nothing of a place", name)
