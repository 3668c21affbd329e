"""The command that runs Volatility's plugins: ``vol``."""

from collections.abc import Sequence
from pathlib import Path

from qvmi.cli.dumped import AskedDump
from qvmi.cli.exit_code import ExitCode
from qvmi.cli.handlers.listings import report_gaps, report_pause
from qvmi.cli.handlers.plugin_arguments import Question
from qvmi.cli.printing.output import Output
from qvmi.errors import UsageError
from qvmi.machine.machine import Machine
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.volatility_bridge.table import RenderedTable, VolatilityFile

__all__ = ["vol"]


async def vol(machine: Machine | AskedDump, output: Output, *, question: Question) -> ExitCode:
    """This asks a plugin, prints its answer and writes the files it made.

    Raises:
        PluginFailed: it failed before its first row.
        UsageError: a file cannot be written.
    """
    table = await _asked(machine, question)
    names = _write(table.files, question.folder)
    if output.json:
        document = {name: getattr(table, name) for name in ("plugin", "columns", "items", "gaps")}
        output.document(document | {"files": names, "provenance": table.provenance})
    else:
        output.text(table.text)
        for name in names:
            output.message(f"written: {name}")
    if question.exact:
        report_pause(output, table.provenance)
    return report_gaps(output, table.gaps)


async def _asked(machine: Machine | AskedDump, question: Question) -> RenderedTable:
    queries = machine.volatility_queries
    bridge, plugin, options = queries.bridge, question.plugin, question.options

    if question.exact:

        def walk(guest: LinuxGuest) -> RenderedTable:
            return bridge.rendered(guest, plugin, options, question.rendering)

        return await machine.capture(walk)
    return await queries.run(
        lambda guest, until: bridge.rendered(guest, plugin, options, question.rendering, until),
        plugin,
    )


def _write(files: Sequence[VolatilityFile], folder: Path) -> list[str]:
    """This writes files under names that are free, and gives these."""
    return [str(_write_one(file, folder)) for file in files]


def _write_one(file: VolatilityFile, folder: Path) -> Path:
    wanted = folder / file.name
    path, number = wanted, 0
    while True:
        try:
            with path.open("xb") as written:
                written.write(file.data)
        except FileExistsError:
            number += 1
            path = wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}")
        except (OSError, ValueError) as error:  # ValueError: a name with a NUL
            raise UsageError(f"cannot write {path}: {error}") from error
        else:
            return path
