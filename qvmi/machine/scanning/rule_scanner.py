"""The process that scans, as a thread sees it that may wait: bytes in, hits out, each within its time.

For whoever scans again and again with the same rules: they are compiled once, in a process that ends, and
what came of it is handed from process to process in sealed memory.

References: memfd_create(2), fcntl(2) F_ADD_SEALS.
"""

import fcntl
import os
import select
import subprocess
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Final, TypeVar

import msgspec

from qvmi.errors import ScanFailed
from qvmi.machine.scanning.scan import HITS_PER_RULE, LONGEST
from qvmi.machine.scanning.scan_rules import ScanRules
from qvmi.machine.scanning.scanner import (
    COMMAND,
    ENDS_S,
    LENGTH,
    NO_FILE,
    Compiled,
    ScannedWindow,
    WindowOrder,
    check_compiled,
    require_yara,
)

__all__ = ["HITS_TOLD", "SHOWN_BYTES", "WINDOW_S", "RuleFacts", "RuleScanner", "compiled_rules"]

HITS_TOLD: Final = 8
"""Hits of a rule that are told of one window: one is enough to believe it, the rest shows what it is."""
SHOWN_BYTES: Final = 256
"""Bytes of a hit that are told."""
WINDOW_S: Final = 5
"""How long the rules may take for one window, which well-made ones scan in some milliseconds."""

_MAX_ANSWER: Final = 64 << 20
"""Bytes of an answer: what 100,000 rules say of themselves, or eight hits of each."""
_COMPILE_S: Final = 120.0
"""Longest time in which rules are compiled: the largest public collections take some seconds."""
_START_S: Final = 15.0
"""Longest time in which the process is there: it takes a fifth of a second, on a busy host more."""
_GRACE_S: Final = 8.0
"""How long after that an answer is waited for: on a busy host it is late."""
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

Message = TypeVar("Message")


class RuleFacts(msgspec.Struct, frozen=True):
    """This is what a rule says of itself.

    Args:
        name: its identifier.
        tags: of it.
        meta: what its author says of it, as names and values.
    """

    name: str
    tags: tuple[str, ...] = ()
    meta: tuple[tuple[str, str | int | float | bool], ...] = ()


class _Ready(Compiled, frozen=True):
    """This is what the process says first."""

    rules: tuple[RuleFacts, ...] = ()


def compiled_rules(rules: ScanRules) -> int:
    """This compiles rules, and gives them as a descriptor of memory that nobody can change any more.

    Whoever calls it closes the descriptor. What the compiler warns of is logged.

    Raises:
        UsageError: the rules are wrong, and what about them; or YARA-X is not installed.
        ScanFailed: they cannot be compiled here.
    """
    require_yara()
    memory = _memory_file("qvmi-rules", os.MFD_ALLOW_SEALING)
    try:
        check_compiled(_compile(rules, memory))
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(memory)
        raise
    return memory


def _compile(rules: ScanRules, memory: int) -> _Ready:
    sources = [asdict(one) for one in rules.sources]
    child = _Child((memory,))
    try:
        order = {"sources": sources, "save": memory, **_LIMITS}
        return child.exchange(order, _Ready, timeout_s=_COMPILE_S)
    finally:
        child.end()


class RuleScanner:
    """This scans with rules that were compiled, in a process that is started when it is needed.

    Args:
        rules: what :func:`compiled_rules` gave; it must stay open for as long as this scans.
        window_s: whole seconds that the rules may take for one window.

    Attributes:
        rules: what they say of themselves, by their names; empty before the first scan.
    """

    def __init__(self, rules: int, *, window_s: int = WINDOW_S) -> None:
        self.rules: dict[str, RuleFacts] = {}
        self._compiled = rules
        self._window_s = window_s
        self._child: _Child | None = None
        self._copy = _memory_file("qvmi-scanned", 0)
        weakref.finalize(self, os.close, self._copy)

    def scan(self, pieces: Sequence[bytes | int], *, skip: int, own: int) -> ScannedWindow:
        """This scans what lies side by side; what takes too long is told as a problem.

        Args:
            pieces: bytes, or how many zeros.
            skip: bytes that are there only for what begins behind them.
            own: bytes behind those in which hits are told.

        Raises:
            ScanFailed: there is no process to scan with, or no place for the bytes.
        """
        order = WindowOrder(self._copied(pieces), skip, own)
        child = self._started()
        try:
            (answer,) = child.exchange(
                [order], tuple[ScannedWindow, ...], timeout_s=self._window_s + _GRACE_S
            )
        except (ScanFailed, ValueError) as error:
            self.close()
            return ScannedWindow(f"{error}", (), ())
        return answer

    def close(self) -> None:
        """This ends the process; another scan starts another one."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def _started(self) -> "_Child":
        if self._child is None:
            self._child = _Child((self._compiled, self._copy))
            self.rules = self._described(self._child)
        return self._child

    def _described(self, child: "_Child") -> dict[str, RuleFacts]:
        """This gives the rules to a process, and takes what they say of themselves."""
        order = {"compiled": self._compiled, **_LIMITS, "window_timeout_s": self._window_s}
        try:
            ready = child.exchange(order, _Ready, timeout_s=_START_S)
        except ScanFailed:
            self.close()
            raise
        if ready.errors:
            self.close()
            raise ScanFailed("; ".join(ready.errors))
        return {rule.name: rule for rule in ready.rules}

    def _copied(self, pieces: Sequence[bytes | int]) -> list[tuple[int, int, int]]:
        """This puts bytes where the process can read them, and tells where that is."""
        placed: list[tuple[int, int, int]] = []
        at = 0
        try:
            for piece in pieces:
                if isinstance(piece, int):
                    placed.append((NO_FILE, 0, piece))
                    continue
                os.pwrite(self._copy, piece, at)
                placed.append((self._copy, at, len(piece)))
                at += len(piece)
        except OSError as error:
            raise ScanFailed(f"no place for a copy of memory: {error.strerror}") from error
        return placed


_LIMITS: Final = {
    "hits_per_rule": HITS_PER_RULE,
    "longest": LONGEST,
    "window_timeout_s": WINDOW_S,
    "told_per_window": HITS_TOLD,
    "shown": SHOWN_BYTES,
    "describe": True,
}


class _Child:
    """This is one such process; it ends with this object, and with this program."""

    def __init__(self, descriptors: Sequence[int]) -> None:
        try:
            process = subprocess.Popen(  # noqa: S603 - our own program
                COMMAND,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=descriptors,
                start_new_session=True,  # Ctrl-C is for us, who then end it
            )
        except OSError as error:
            raise ScanFailed(f"the process that scans cannot be started: {error}") from error
        self._process = process
        self.end: Callable[[], object] = weakref.finalize(self, _end, process)

    def exchange(self, message: object, kind: type[Message], *, timeout_s: float) -> Message:
        """This sends a message, and waits for the answer.

        Raises:
            ScanFailed: it has ended, or there is none in time.
        """
        ends = time.monotonic() + timeout_s
        body = msgspec.json.encode(message)
        try:
            self._send(LENGTH.pack(len(body)) + body, ends)
            size = LENGTH.unpack(self._receive(LENGTH.size, ends))[0]
            if size > _MAX_ANSWER:
                raise ScanFailed(f"an answer of {size} bytes")
            return msgspec.json.decode(self._receive(size, ends), type=kind)
        except (OSError, msgspec.MsgspecError) as error:
            raise ScanFailed(f"the process that scans has ended: {error}") from error

    def _send(self, data: bytes, ends: float) -> None:
        """This writes everything; rules are longer than what a pipe takes at once."""
        stream = self._process.stdin
        assert stream is not None  # noqa: S101 - it was started with a pipe
        os.set_blocking(stream.fileno(), False)
        left = memoryview(data)
        while left:
            _wait(stream.fileno(), select.POLLOUT, ends)
            left = left[os.write(stream.fileno(), left) :]

    def _receive(self, size: int, ends: float) -> bytes:
        stream = self._process.stdout
        assert stream is not None  # noqa: S101 - it was started with a pipe
        parts: list[bytes] = []
        while size:
            _wait(stream.fileno(), select.POLLIN, ends)
            part = os.read(stream.fileno(), size)
            if not part:
                raise ScanFailed("the process that scans has ended: killed, or out of memory?")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def _wait(descriptor: int, what: int, ends: float) -> None:
    """This waits until something can be read or written."""
    poll = select.poll()
    poll.register(descriptor, what)
    left_s = ends - time.monotonic()
    if left_s <= 0 or not poll.poll(left_s * 1000):
        raise ScanFailed("the process that scans did not answer in time")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """This ends a process, whatever it does."""
    with suppress(ProcessLookupError):
        process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(ENDS_S)


def _memory_file(name: str, flags: int) -> int:
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC | flags)
    except OSError as error:
        raise ScanFailed(f"no memory to scan with: {error.strerror}") from error
