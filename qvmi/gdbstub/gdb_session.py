"""A conversation with gdb through its machine interface.

References: GDB manual, "The GDB/MI Interface"; pygdbmi 0.11 ``gdbmiparser.py``. Only the parser of pygdbmi
is used: its controller adds 0.2 s to each command, and waits busily.
"""

import asyncio
import contextlib
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from pygdbmi.gdbmiparser import parse_response

from qvmi.addr import Va
from qvmi.errors import GdbCommandFailed, GdbError, GdbTimeout, UsageError

__all__ = ["COMMAND_TIMEOUT_S", "MAX_OUTPUT", "GdbFrame", "GdbReply", "GdbSession", "GdbStop"]

COMMAND_TIMEOUT_S: Final = 30.0
"""How long a command may take by default; one that waits for a breakpoint is given more."""
MAX_OUTPUT: Final = 1 << 20
"""Characters kept of what one command prints; the rest is dropped, and the reply says so."""

_MAX_LINE: Final = 1 << 20
"""Bytes; gdb prints text line by line, and a backtrace of 256 frames takes 40 KiB."""
_MAX_FRAMES: Final = 256
_START_S: Final = 30.0
"""How long gdb may take to read 200,000 names and to connect; it needs a second."""
_BREAK_OFF_S: Final = 10.0
"""How long gdb may take to stop what it does, and the guest with it."""
_MI: Final = "--interpreter=mi3"
_STREAMS: Final = ("~", "@")
_LOG: Final = "&"
_PROMPT: Final = "(gdb)"


@dataclass(frozen=True, slots=True)
class GdbStop:
    """This is why the guest stands still.

    Args:
        reason: gdb's word, such as ``breakpoint-hit``; empty where it gives none, as for a step.
        thread: gdb's number of the vCPU, from 1 on; None where it does not tell.
        address: where that vCPU stands.
        function: the symbol there; empty where there is none.
    """

    reason: str
    thread: int | None
    address: Va | None
    function: str


@dataclass(frozen=True, slots=True)
class GdbReply:
    """This is what a command led to.

    Args:
        command: as it was given.
        output: what gdb printed, warnings included.
        truncated: whether it printed more than is kept.
        stop: of a command that let the guest run, why it stands still again.
    """

    command: str
    output: str
    truncated: bool
    stop: GdbStop | None


@dataclass(frozen=True, slots=True)
class GdbFrame:
    """This is one frame of a backtrace, the innermost first.

    Args:
        level: 0 for the innermost.
        address: the next instruction, or where a call returns to.
        function: the symbol there; empty where there is none.
    """

    level: int
    address: Va
    function: str


@dataclass(slots=True)
class _Pending:
    """This is a command that gdb is at."""

    command: str
    token: int
    done: asyncio.Future[Mapping[str, Any]]
    output: list[str] = field(default_factory=list)
    size: int = 0
    runs: bool = False

    def print(self, text: str) -> None:
        """This keeps what gdb prints, as far as there is room."""
        if self.size < MAX_OUTPUT:
            self.output.append(text[: MAX_OUTPUT - self.size])
        self.size += len(text)

    def resolve(self, payload: Mapping[str, Any]) -> None:
        """This ends the wait, if anybody still waits."""
        if not self.done.done():
            self.done.set_result(payload)

    def fail(self, error: GdbError) -> None:
        """This ends the wait by an error."""
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # seen: a caller that was cancelled just now will not look


class GdbSession:
    """This runs one gdb; only :meth:`start` makes one.

    One command is done at a time, whoever asks. With the ``async with`` block gdb ends.

    Attributes:
        missing: which of the guest's names gdb has not got, and why; in words.
    """

    def __init__(self, process: Process, missing: tuple[str, ...]) -> None:
        self.missing = missing
        self._process = process
        self._lock = asyncio.Lock()
        self._pending: _Pending | None = None
        self._tokens = 0
        self._ready = asyncio.Event()
        self._ended: str = ""
        self._reading = asyncio.create_task(self._read(), name="qvmi gdb")

    @classmethod
    async def start(cls, command: Sequence[str], *, missing: tuple[str, ...] = ()) -> Self:
        """This starts gdb and waits until it takes commands.

        Args:
            command: its path and arguments, without those that choose how it is talked to.
            missing: what is known to be missing in the file of names that it is given.

        Raises:
            GdbError: it does not start.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                _MI,
                stdin=PIPE,
                stdout=PIPE,
                stderr=DEVNULL,
                limit=_MAX_LINE,
                start_new_session=True,  # Ctrl-C is for whoever uses this, who then breaks it off
            )
        except OSError as error:
            raise GdbError(f"gdb cannot be started: {error}") from error
        session = cls(process, missing)
        try:
            async with asyncio.timeout(_START_S):
                await session._ready.wait()
        except TimeoutError as error:
            raise GdbTimeout("start", _START_S) from error
        finally:
            if not session._ready.is_set():
                await session.close()
        session._require_alive("start")
        return session

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def execute(self, command: str, *, timeout_s: float = COMMAND_TIMEOUT_S) -> GdbReply:
        """This does what a person would type, and waits until it is done.

        A command that lets the guest run is done when the guest stands still again.

        Args:
            command: one line.
            timeout_s: after so long it is broken off, and a guest that runs is stopped.

        Raises:
            GdbCommandFailed: gdb refuses it; says why.
            GdbTimeout: it took too long.
            GdbError: gdb has ended.
            UsageError: it is more than one line.
        """
        if any(not character.isprintable() for character in command):
            raise UsageError(f"{command!r}: a command of gdb's is one line of printable text")
        line = f'-interpreter-exec console "{_quoted(command)}"'
        pending, payload = await self._ask(command, line, timeout_s)
        return GdbReply(
            command=command,
            output="".join(pending.output),
            truncated=pending.size > MAX_OUTPUT,
            stop=_stop(payload) if pending.runs else None,
        )

    async def backtrace(self, *, timeout_s: float = COMMAND_TIMEOUT_S) -> tuple[GdbFrame, ...]:
        """This is the stack of the selected vCPU as gdb sees it, at most 256 frames.

        Raises:
            GdbCommandFailed, GdbTimeout, GdbError: as :meth:`execute`.
        """
        line = f"-stack-list-frames 0 {_MAX_FRAMES - 1}"
        _, payload = await self._ask("backtrace", line, timeout_s)
        frames = payload.get("stack")
        return tuple(map(_frame, frames)) if isinstance(frames, list) else ()

    async def close(self) -> None:
        """This ends gdb at once; whoever gave it the guest takes the guest back."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        self._reading.cancel()
        await asyncio.wait({self._reading})
        self._end("it was closed")

    # --------------------------------------------------------------------------------- what is asked

    async def _ask(
        self, command: str, line: str, timeout_s: float
    ) -> tuple[_Pending, Mapping[str, Any]]:
        async with self._lock:
            await self._finish_last()
            self._require_alive(command)
            self._tokens += 1
            done: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
            self._pending = pending = _Pending(command, self._tokens, done)
            await self._say(f"{pending.token}{line}\n")
            try:
                async with asyncio.timeout(timeout_s):
                    return pending, await asyncio.shield(done)
            except TimeoutError as error:
                self._break_off()
                raise GdbTimeout(command, timeout_s) from error
            except asyncio.CancelledError:
                self._break_off()
                raise

    async def _say(self, line: str) -> None:
        stdin = self._process.stdin
        try:
            if stdin is not None:
                stdin.write(line.encode())
                await stdin.drain()
        except OSError as error:
            raise GdbError(f"gdb has ended: {error.strerror}") from error

    def _break_off(self) -> None:
        """This is Ctrl-C: gdb ends what it does, and stops the guest if that runs."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGINT)

    async def _finish_last(self) -> None:
        """This waits for the end of a command that was broken off."""
        last = self._pending
        if last is None or last.done.done():
            return
        await asyncio.wait({last.done}, timeout=_BREAK_OFF_S)
        if not last.done.done():
            await self.close()

    def _require_alive(self, doing: str) -> None:
        if self._ended:
            raise GdbError(f"gdb, {doing!r}: {self._ended}")

    # --------------------------------------------------------------------------------- what is heard

    async def _read(self) -> None:
        """This hears gdb out, whoever waits."""
        stdout = self._process.stdout
        try:
            while stdout is not None and (line := await stdout.readline()):
                self._take(line.decode("utf-8", "backslashreplace").rstrip("\r\n"))
            self._end("gdb has ended")
        except (ValueError, LookupError) as error:  # ValueError: the line is too long, or no MI
            self._end(f"gdb said what is not understood: {error}")

    def _take(self, line: str) -> None:
        pending = self._pending
        if line.strip() == _PROMPT:
            self._ready.set()
        elif pending is None:
            return
        elif line.startswith((*_STREAMS, _LOG)):
            pending.print(str(parse_response(line)["payload"]))
        elif line.startswith(f"{pending.token}^"):
            self._result(pending, parse_response(line))
        elif line.startswith("*stopped") and pending.runs:
            pending.resolve(parse_response(line)["payload"] or {})

    def _result(self, pending: _Pending, record: Mapping[str, Any]) -> None:
        payload = record["payload"] or {}
        if record["message"] == "running":
            pending.runs = True
        elif record["message"] == "error":
            pending.fail(GdbCommandFailed(pending.command, str(payload.get("msg", "no reason"))))
        else:
            pending.resolve(payload)

    def _end(self, why: str) -> None:
        self._ended = self._ended or why
        self._ready.set()
        if self._pending is not None:
            self._pending.fail(GdbError(f"gdb, {self._pending.command!r}: {self._ended}"))


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _stop(payload: Mapping[str, Any]) -> GdbStop:
    frame = payload.get("frame")
    known = _frame(frame) if isinstance(frame, dict) else None
    thread = str(payload.get("thread-id", ""))
    return GdbStop(
        reason=str(payload.get("reason", "")),
        thread=int(thread) if thread.isdecimal() else None,
        address=None if known is None else known.address,
        function="" if known is None else known.function,
    )


def _frame(frame: Mapping[str, Any]) -> GdbFrame:
    function = str(frame.get("func", "??"))
    return GdbFrame(
        level=int(str(frame.get("level", "0"))),
        address=Va(int(str(frame.get("addr", "0")), 16)),
        function="" if function == "??" else function,
    )
