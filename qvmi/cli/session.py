"""One command from beginning to end: attach as the options say, let it ask, leave."""

import asyncio
import logging
import signal
import sys
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from qvmi.cli.declared.arguments import ENVIRONMENT, Options, Request
from qvmi.cli.declared.command import Needs
from qvmi.cli.exit_code import ExitCode
from qvmi.cli.printing.output import Output
from qvmi.errors import UsageError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from qvmi.machine.memory_dump import MemoryDump

__all__ = ["handler_of", "run"]


def run(request: Request, output: Output, *, debug: bool) -> ExitCode:
    """This runs the command that was asked for.

    Raises:
        QvmiError: it could not be done.
    """
    _log_to(output, debug=debug)
    with _audit_log(request.options):
        return _run(request, output, debug=debug)


def _audit_log(options: Options) -> "AbstractContextManager[object]":
    """This is the audit log that was asked for, if one was."""
    if options.audit is None:
        return nullcontext()
    from qvmi.audit import AuditLog

    return AuditLog(Path(options.audit))


def _run(request: Request, output: Output, *, debug: bool) -> ExitCode:
    command = request.command.as_asked(request.arguments.get("action"))
    request = request._replace(command=command)
    handler = handler_of(command.handler)
    if request.command.needs is Needs.CODE:
        return _run_code(request, handler, output)
    if request.command.needs in {Needs.GUEST, Needs.MACHINE}:
        if request.options.dump is not None:
            return _ask_dump(request, handler, output, debug=debug)
        return _run_to_end(lambda: _ask_machine(request, handler, output), debug=debug)
    if request.command.needs is Needs.MONITOR:
        return _run_to_end(lambda: _ask_monitor(request, handler, output), debug=debug)
    if request.command.needs is Needs.SYSTEM:
        return _run_to_end(lambda: _ask_system(request, handler, output), debug=debug)
    code: ExitCode = handler(output, **request.arguments)
    return code


async def _ask_system(request: Request, handler: Callable[..., Any], output: Output) -> ExitCode:
    if request.options.dump is not None:
        raise UsageError(f"{request.command.name} cannot be asked of a dump")
    code: ExitCode = await handler(request.options, output, **request.arguments)
    return code


def handler_of(name: str) -> Callable[..., Any]:
    """This imports the function that runs a command, named as in ``Command.handler``."""
    module, _, function = name.partition(":")
    handler: Callable[..., Any] = getattr(import_module(module), function)
    return handler


def _run_to_end(ask: Callable[[], Coroutine[object, object, ExitCode]], *, debug: bool) -> ExitCode:
    """This runs a coroutine; what Ctrl-C tears down in mid-air complains only to those who debug."""
    if not debug:
        sys.unraisablehook = partial(_unless_ctrl_c_is_lost, sys.unraisablehook)
    # Around the runner, too: Ctrl-C may come in its own last steps, which then are left undone.
    with _torn_down(debug=debug), asyncio.Runner() as runner, _torn_down(debug=debug):
        return runner.run(_until_ctrl_c(ask))


@contextmanager
def _torn_down(*, debug: bool) -> Iterator[None]:
    """This keeps what Ctrl-C tears down from complaining, as nothing more is to be told."""
    try:
        yield
    except KeyboardInterrupt:
        if not debug:
            logging.disable()
            sys.unraisablehook = lambda _: None
        raise


def _unless_ctrl_c_is_lost(
    tell: "Callable[[sys.UnraisableHookArgs], object]", problem: "sys.UnraisableHookArgs"
) -> None:
    """This tells of what nobody can catch, unless it is but a Ctrl-C that came at a change of hands.

    In the moment in which it is left to the kernel Python has heard of one, and has nobody to tell.
    """
    lost = isinstance(problem.exc_value, OSError) and "race condition" in str(problem.exc_value)
    if not lost:
        tell(problem)


async def _until_ctrl_c(ask: Callable[[], Coroutine[object, object, ExitCode]]) -> ExitCode:
    """This lets the first Ctrl-C cancel what runs, and leaves one behind that to the kernel.

    Python would raise it wherever it happens to be, also where nobody can catch it, and complain.
    """
    cancel = signal.getsignal(signal.SIGINT)
    if not callable(cancel):  # the shell has it ignored, as that of a job in the background
        return await ask()

    def heard(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        cancel(number, frame)

    signal.signal(signal.SIGINT, heard)
    try:
        return await ask()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


async def _ask_machine(request: Request, handler: Callable[..., Any], output: Output) -> ExitCode:
    from qvmi.machine.attach import ATTACH_TIMEOUT_S, attach
    from qvmi.policy import OBSERVE, Grant

    options = request.options
    policy = OBSERVE.plus(*map(Grant, request.command.grants))
    may_write = request.arguments.get("may_write") or request.arguments.get("respond")
    async with attach(
        _address(options),
        isf=None if options.isf is None else Path(options.isf),
        gdb=options.gdb,
        policy=policy.plus(Grant.WRITE) if may_write else policy,
        use_cache=options.use_cache,
        discover=request.command.needs is Needs.GUEST,
        timeout_s=options.timeout_s or ATTACH_TIMEOUT_S,
    ) as machine:
        code: ExitCode = await handler(machine, output, **request.arguments)
        output.flush()
        if machine.stood_still_s and not machine.is_direct and not output.json:
            output.message(
                f"the guest stood still for {machine.stood_still_s * 1000:.1f} ms in all: its memory"
                f" is read by {machine.memory.description}"
            )
    return code


async def _ask_monitor(request: Request, handler: Callable[..., Any], output: Output) -> ExitCode:
    """This lets a command talk with QEMU that needs nothing else of the machine."""
    from qvmi.machine.attach import ATTACH_TIMEOUT_S
    from qvmi.machine.completion import to_the_end
    from qvmi.qmp.open import open_monitor

    options = request.options
    if options.dump is not None:
        raise UsageError(f"{request.command.name} needs a machine that runs, not a dump")
    timeout_s = options.timeout_s or ATTACH_TIMEOUT_S
    monitor = await open_monitor(_address(options), timeout_s=timeout_s)
    try:
        code: ExitCode = await handler(monitor, options.gdb, output, **request.arguments)
        return code
    finally:
        await to_the_end(monitor.close())


def _run_code(request: Request, handler: Callable[..., Any], output: Output) -> ExitCode:
    """This lets a user's own code ask, in this thread; a session with QEMU goes on in another."""
    from qvmi.machine.attach import ATTACH_TIMEOUT_S, attach_sync

    options = request.options
    if options.dump is not None:
        with _opened_dump(options) as dump:
            return _ended(handler(dump, output, **request.arguments))
    with attach_sync(
        _address(options),
        isf=None if options.isf is None else Path(options.isf),
        gdb=options.gdb,
        use_cache=options.use_cache,
        timeout_s=options.timeout_s or ATTACH_TIMEOUT_S,
    ) as machine:
        return _ended(handler(machine, output, **request.arguments))


def _ended(code: ExitCode) -> ExitCode:
    """This is the exit code of a handler, of which only its name was known."""
    return code


def _address(options: Options) -> str:
    """This is the address of the machine that is meant.

    Raises:
        UsageError: none is named.
    """
    if options.qmp is None:
        raise UsageError(
            f"which machine? Give --qmp ADDR or set {ENVIRONMENT}; `qvmi find` lists those that run"
        )
    return options.qmp


def _ask_dump(
    request: Request, handler: Callable[..., Any], output: Output, *, debug: bool
) -> ExitCode:
    """This lets a command ask a dump what it would ask a machine."""
    command = request.command
    if command.why_no_dump:
        raise UsageError(f"{command.name} cannot be asked of a dump: {command.why_no_dump}")
    from qvmi.cli.dumped import AskedDump

    async def ask(asked: AskedDump) -> ExitCode:
        code: ExitCode = await handler(asked, output, **request.arguments)
        output.flush()
        return code

    with _opened_dump(request.options) as dump:
        return _run_to_end(lambda: ask(AskedDump(dump)), debug=debug)


def _opened_dump(options: Options) -> "AbstractContextManager[MemoryDump]":
    from qvmi.machine.memory_dump import open_dump

    return open_dump(
        options.dump or "",
        isf=None if options.isf is None else Path(options.isf),
        use_cache=options.use_cache,
        raw=options.raw_ram is not None,
        below_4g=None if options.raw_ram is None else options.raw_ram.below_4g,
    )


class _Messages(logging.Handler):
    """This sends what the library logs the way of all messages: escaped, to stderr."""

    def __init__(self, output: Output, *, debug: bool) -> None:
        # An audit log lets its logger pass what is less, and that is for its file alone.
        super().__init__(logging.DEBUG if debug else logging.WARNING)
        self._output = output
        self._debug = debug

    def emit(self, record: logging.LogRecord) -> None:
        details: list[str] = []
        if self._debug and record.exc_info and record.exc_info[1]:
            details = "".join(traceback.format_exception(record.exc_info[1])).splitlines()
        self._output.message(record.getMessage(), details)
        if isinstance(record.args, tuple) and len(record.args) == 1:
            [said] = record.args
            self._output.told = said if isinstance(said, BaseException) else None


def _log_to(output: Output, *, debug: bool) -> None:
    level = logging.DEBUG if debug else logging.WARNING
    logging.basicConfig(handlers=[_Messages(output, debug=debug)], level=level)
    if not debug:
        # That a connection breaks is told by the error that follows, or is our own hanging up.
        logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
