"""The command that lets drgn look at a guest: ``drgn``."""

import sys
import traceback
from typing import TYPE_CHECKING

from qvmi.cli.exit_code import ExitCode
from qvmi.cli.output import Output, ReaderGone
from qvmi.errors import QvmiError, UsageError
from qvmi.machine.attach import SyncMachine
from qvmi.machine.memory_dump import MemoryDump

if TYPE_CHECKING:
    from qvmi.semantics.drgn_bridge.program import Program

__all__ = ["drgn"]


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
        _run(program, code, script)
    except BrokenPipeError as error:
        raise ReaderGone from error
    except SystemExit as ended:
        return _said_by(ended, output)
    except QvmiError:
        raise
    except Exception as error:  # noqa: BLE001 - not ours but the user's own code
        output.flush()
        output.message(f"the code failed: {error}", traceback.format_exc().splitlines())
        return ExitCode.NOT_SEEN
    return ExitCode.FINE


def _run(program: "Program", code: str | None, script: list[str]) -> None:
    from qvmi.semantics.drgn_bridge import console

    if code is not None:
        console.run_code(program, code, "<code>")
    elif script:
        console.run_script(program, script[0], script[1:])
    elif sys.stdin is not None and sys.stdin.isatty():
        console.interact(program)
    else:
        console.run_code(program, "" if sys.stdin is None else sys.stdin.read(), "<stdin>")


def _said_by(ended: SystemExit, output: Output) -> ExitCode:
    """This is the exit code of code that ended itself: fine, or not."""
    if ended.code in {None, 0}:
        return ExitCode.FINE
    output.message(f"the code ended with {ended.code}")
    return ExitCode.NOT_SEEN
