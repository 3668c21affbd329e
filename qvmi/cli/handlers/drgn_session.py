"""The command that lets drgn look at a guest: ``drgn``."""

import io
import sys
import traceback
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Final

import qvmi
from qvmi.cli.exit_code import ExitCode
from qvmi.cli.printing.output import Output, ReaderGone
from qvmi.errors import QvmiError, UsageError
from qvmi.machine.attach import SyncMachine
from qvmi.machine.memory_dump import MemoryDump

if TYPE_CHECKING:
    from qvmi.semantics.drgn_bridge.program import Program

__all__ = ["drgn"]

_OURS: Final = str(Path(qvmi.__file__).parent)
"""Where this package lies."""


def drgn(
    machine: SyncMachine | MemoryDump, output: Output, *, code: str | None, script: list[str]
) -> ExitCode:
    """This runs code, a script, or what is typed, on a drgn program of the guest.

    Raises:
        UsageError: what was asked for contradicts itself, or drgn is not installed.
        UnknownGuest: no guest is recognised.
    """
    if output.json:
        raise UsageError("--json is for answers of qvmi's own: what drgn code prints is its own")
    if code is not None and script:
        raise UsageError("both --code and a script: which of them is to be run?")
    program = machine.drgn()
    try:
        _run(program, output, code, script)
    except BrokenPipeError as error:
        raise ReaderGone from error
    except SystemExit as ended:
        return _said_by(ended, output)
    except (QvmiError, ReaderGone):
        raise
    except Exception as error:  # noqa: BLE001 - not ours but the user's own code
        output.flush()
        output.message(f"the code failed: {error}", _traceback(error))
        return ExitCode.NOT_SEEN
    return ExitCode.FINE


def _traceback(error: Exception) -> list[str]:
    """This is where the user's own code failed: what ran it, this package, is left out.

    A syntax error has no line that ran, and is told without any.
    """
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename.startswith(_OURS):
        frame = frame.tb_next
    while frame is not None and frame.tb_frame.f_globals.get("__name__") == "runpy":
        frame = frame.tb_next
    return "".join(traceback.format_exception(error.with_traceback(frame))).splitlines()


class _Stdout(io.TextIOBase):
    """This is what the code prints to: that it cannot be written is no failure of the code.

    Args:
        output: where it goes.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self.buffer = output.stream.buffer

    @property
    def encoding(self) -> str:  # type: ignore[override]  # typeshed has an attribute there
        return self._output.stream.encoding

    def fileno(self) -> int:
        return self._output.stream.fileno()

    def isatty(self) -> bool:
        return self._output.is_terminal

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._output.printed(text)
        return len(text)

    def flush(self) -> None:
        self._output.flush()

    def close(self) -> None:
        """This leaves stdout open: it is its process's."""


def _run(program: "Program", output: Output, code: str | None, script: list[str]) -> None:
    from qvmi.semantics.drgn_bridge import console

    if code is None and not script and sys.stdin is not None and sys.stdin.isatty():
        console.interact(program)
        return
    with redirect_stdout(_Stdout(output)):
        if code is not None:
            console.run_code(program, code, "<code>")
        elif script:
            console.run_script(program, script[0], script[1:])
        else:
            console.run_code(program, "" if sys.stdin is None else sys.stdin.read(), "<stdin>")


def _said_by(ended: SystemExit, output: Output) -> ExitCode:
    """This is the exit code of code that ended itself: fine, or not."""
    if ended.code in {None, 0}:
        return ExitCode.FINE
    output.message(f"the code ended with {ended.code}")
    return ExitCode.NOT_SEEN
