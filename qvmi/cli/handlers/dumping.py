"""The command ``dump``."""

from functools import partial
from pathlib import Path

from qvmi.cli.dumped import AskedDump
from qvmi.cli.exit_code import ExitCode
from qvmi.cli.handlers.listings import report_gaps, report_pause
from qvmi.cli.named_process import named_process
from qvmi.cli.printing.output import Output
from qvmi.errors import GuestError, UsageError
from qvmi.machine.machine import Machine
from qvmi.semantics.guest_os import GuestOS, Process

__all__ = ["dump"]


async def dump(
    machine: Machine | AskedDump, output: Output, *, path: str, pid: int | None, live: bool
) -> ExitCode:
    """This writes the guest's memory, or a process's, and says for how long the guest stood still.

    Raises:
        UsageError: the file cannot be written.
        GuestError: there is no such process, or it has no memory of its own.
        PauseError: the guest cannot be stopped safely.
    """
    if pid is not None:
        return await _dump_process(machine, output, path, pid, live=live)
    if isinstance(machine, AskedDump):
        raise UsageError("dump cannot be asked of a dump: it is one; --pid takes a process from it")
    written = await machine.dump(Path(path), live=live)
    if output.json:
        sizes = {"size": written.size, "data_size": written.data_size}
        output.document({"path": path, **sizes, "provenance": written.provenance})
        return ExitCode.FINE
    output.line(f"{path}: {written.size} bytes, {written.data_size} of them of the guest's memory")
    report_pause(output, written.provenance)
    return ExitCode.FINE


async def _dump_process(
    machine: Machine | AskedDump, output: Output, path: str, pid: int, *, live: bool
) -> ExitCode:
    from qvmi.machine.process_dump import dump_process

    written = await dump_process(machine, partial(_named, pid), Path(path), live=live)
    if output.json:
        sizes = {"size": written.size, "data_size": written.data_size}
        missing = {"absent_size": written.absent_size, "gaps": written.gaps}
        output.document({"path": path, **sizes, **missing, "provenance": written.provenance})
        return report_gaps(output, written.gaps)
    output.line(
        f"{path}: {written.size} bytes, {written.data_size} of them of the process's memory;"
        f" {written.absent_size} more are in files and not loaded"
    )
    report_pause(output, written.provenance)
    return report_gaps(output, written.gaps)


def _named(pid: int, guest: GuestOS) -> Process:
    process = named_process(guest, pid)
    if process.kernel_thread:
        raise GuestError(f"{pid} is a kernel thread: it has no memory of its own")
    return process
