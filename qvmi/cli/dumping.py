"""The command ``dump``."""

from pathlib import Path

from qvmi.cli.exit_code import ExitCode
from qvmi.cli.listings import report_pause
from qvmi.cli.output import Output
from qvmi.machine.machine import Machine

__all__ = ["dump"]


async def dump(machine: Machine, output: Output, *, path: str, live: bool) -> ExitCode:
    """This writes the guest's memory to a file, and says for how long the guest stood still for it.

    Raises:
        UsageError: the file cannot be written.
        PauseError: the guest cannot be stopped safely.
    """
    written = await machine.dump(Path(path), live=live)
    if output.json:
        sizes = {"size": written.size, "data_size": written.data_size}
        output.document({"path": path, **sizes, "provenance": written.provenance})
        return ExitCode.FINE
    output.line(f"{path}: {written.size} bytes, {written.data_size} of them of the guest's memory")
    report_pause(output, written.provenance)
    return ExitCode.FINE
