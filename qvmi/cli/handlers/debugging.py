"""The command ``gdb``."""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from qvmi.cli.exit_code import ExitCode
from qvmi.cli.printing.output import Output
from qvmi.errors import GdbCommandFailed, UsageError
from qvmi.machine.holding.gdb_host import GdbHost
from qvmi.machine.machine import Machine

__all__ = ["gdb"]


async def gdb(
    machine: Machine,
    output: Output,
    *,
    batch: bool,
    commands: Sequence[str],
    may_write: bool,
    arguments: Sequence[str],
) -> ExitCode:
    """This runs gdb on the terminal, or some commands of its for a program.

    Raises:
        UsageError: there is no gdb, or nothing for it to do.
        AttachError: the gdbstub cannot be had.
        GdbError: gdb does not start, or has ended.
    """
    host = machine.gdb_host(may_write=may_write)
    if output.json:
        if arguments or not commands:
            raise UsageError("gdb --json does what -ex gives it, and nothing else: give -ex CMD")
        return await _document(host, output, commands)
    own = [*(["-batch"] if batch else []), *_each("-ex", commands), *arguments]
    with _left_to_gdb():
        code, missing = await host.run(own)
    for line in missing:
        output.message(line)
    return ExitCode.NOT_SEEN if code else ExitCode.FINE


async def _document(host: GdbHost, output: Output, commands: Sequence[str]) -> ExitCode:
    """This tells what each command has printed, or why it was refused."""
    results: list[dict[str, str | None]] = []
    async with host.session() as session:
        for command in commands:
            try:
                reply = await session.execute(command)
            except GdbCommandFailed as error:
                results.append({"command": command, "output": "", "error": error.reason})
            else:
                results.append({"command": command, "output": reply.output, "error": None})
        for line in session.missing:
            output.message(line)
    output.document({"results": results})
    failed = any(result["error"] is not None for result in results)
    return ExitCode.NOT_SEEN if failed else ExitCode.FINE


def _each(flag: str, values: Sequence[str]) -> list[str]:
    return [word for value in values for word in (flag, value)]


@contextmanager
def _left_to_gdb() -> Iterator[None]:
    """This leaves Ctrl-C to gdb, and gives the terminal back as it was, whatever gdb did to it."""
    before = signal.signal(signal.SIGINT, lambda *_: None)  # not ignored: gdb would inherit that
    try:
        with _terminal_restored():
            yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _terminal_restored() -> Iterator[None]:
    if sys.stdin is None or not sys.stdin.isatty():
        yield
        return
    import termios

    before = termios.tcgetattr(sys.stdin)
    try:
        yield
    finally:
        # A background job that changes its terminal is stopped: after a suspend that may be us.
        ignored = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        try:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        finally:
            signal.signal(signal.SIGTTOU, ignored)
