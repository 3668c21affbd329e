"""The door that every command goes through: arguments in, exit code out, and never a traceback."""

import os
from collections.abc import Sequence
from typing import Final

from qvmi.cli.declared.arguments import TextWanted, parse
from qvmi.cli.exit_code import ExitCode, exit_code_of
from qvmi.cli.printing.output import Output, ReaderGone
from qvmi.errors import QvmiError

__all__ = ["enter"]

DEBUG: Final = "QVMI_DEBUG"
"""The environment variable that shows where an error arose."""


def enter(arguments: Sequence[str]) -> ExitCode:
    """This runs the command that the arguments ask for."""
    output = Output.of_process()
    try:
        code = _run(arguments, output)
        output.flush()
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
        output.drop()
    except ReaderGone:
        code = ExitCode.NOBODY_READS
        output.drop()
    except QvmiError as error:
        code = exit_code_of(error)
        _explain(output, str(error), error)
    except Exception as error:  # noqa: BLE001 - the command line's one door for them
        code = ExitCode.BUG
        _explain(output, f"this is a bug in qvmi: {type(error).__name__}: {error}", error)
    return code


def _run(arguments: Sequence[str], output: Output) -> ExitCode:
    """This runs one command; what it needs is imported by then."""
    try:
        request = parse(arguments)
    except TextWanted as wanted:
        for line in wanted.text.splitlines():
            output.line(line)
        return ExitCode.FINE
    output.json = request.options.json
    from qvmi.cli.session import run

    return run(request, output, debug=_debugging())


def _explain(output: Output, message: str, error: Exception) -> None:
    """This tells what went wrong, behind all that went well."""
    try:
        output.flush()
    except (ReaderGone, QvmiError):
        output.drop()
    if not _debugging():
        if error is not output.told:
            output.message(message)
        return
    import traceback

    output.message(message, "".join(traceback.format_exception(error)).splitlines())


def _debugging() -> bool:
    return os.environ.get(DEBUG, "") not in {"", "0"}
