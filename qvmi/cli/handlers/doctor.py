"""The command that proves or refutes isolation, and checks the set-up: ``doctor``."""

from collections.abc import Mapping, Sequence
from typing import Final

from qvmi.cli.declared.arguments import Options
from qvmi.cli.exit_code import ExitCode
from qvmi.cli.printing.output import Output
from qvmi.cli.printing.table import Column, table_of
from qvmi.errors import UsageError
from qvmi.manager.isolation.check import Check, Report, Verdict
from qvmi.manager.isolation.examine import broker_pid, examine_at
from qvmi.manager.isolation.gather import Bus
from qvmi.manager.isolation.host_setup import check_setup
from qvmi.qmp.monitor import CONNECT_TIMEOUT_S

__all__ = ["doctor"]

_CODES: Final[Mapping[Verdict, ExitCode]] = {
    Verdict.PROVEN: ExitCode.FINE,
    Verdict.REFUTED: ExitCode.FOUND,
    Verdict.NOT_CHECKABLE: ExitCode.NOT_SEEN,
}
_SETUP_WORDS: Final[Mapping[Verdict, str]] = {
    Verdict.PROVEN: "there",
    Verdict.REFUTED: "missing",
    Verdict.NOT_CHECKABLE: "unclear",
}

_Line = tuple[str, str, str]
_LINE: Final[Sequence[Column[_Line]]] = (
    Column("VERDICT", lambda line: line[0]),
    Column("CHECK", lambda line: line[1]),
    Column("EVIDENCE", lambda line: line[2]),
)


async def doctor(
    options: Options, output: Output, *, broker: str | None, bridge: str | None, pid: int | None
) -> ExitCode:
    """This examines a machine, or the host alone where none is named.

    Raises:
        QvmiError: the machine or the broker cannot be found, or ended meanwhile.
    """
    if options.qmp is None:
        if any(one is not None for one in (broker, bridge, pid)):
            raise UsageError("isolation is a machine's: name it with --qmp")
        setup = Report(check_setup())
        _tell(output, setup, None, bus=False)
        return _CODES[setup.verdict]
    if bridge is not None and broker is None:
        raise UsageError("--bridge tells of a bus: name its broker with --broker")
    bus = None if broker is None else Bus(broker_pid(broker), bridge)
    timeout_s = options.timeout_s or CONNECT_TIMEOUT_S
    isolation = await examine_at(options.qmp, bus, pid=pid, timeout_s=timeout_s)
    _tell(output, Report(check_setup()), isolation, bus=bus is not None)
    return _CODES[isolation.verdict]


def _tell(output: Output, setup: Report, isolation: Report | None, *, bus: bool) -> None:
    if output.json:
        document: dict[str, object] = {"isolation": None, "bus": bus, "setup": _document(setup)}
        if isolation is not None:
            document["isolation"] = _document(isolation)
        output.document(document)
        return
    if isolation is not None:
        output.table(table_of(_LINE, _lines(isolation, {}), prose=True))
        output.line()
        output.line(_conclusion(isolation, bus=bus))
        _tell_ways(output, isolation)
        output.line()
    output.table(table_of(_LINE, _lines(setup, _SETUP_WORDS), prose=True))


def _document(report: Report) -> dict[str, object]:
    checks = [
        {
            "name": _text(check.name),
            "verdict": check.verdict,
            "decides": check.decides,
            "findings": [
                {"verdict": each.verdict, "evidence": _text(each.evidence), "fix": _text(each.fix)}
                for each in check.findings
            ],
        }
        for check in report.checks
    ]
    return {"verdict": report.verdict, "checks": checks}


def _lines(report: Report, words: Mapping[Verdict, str]) -> list[_Line]:
    lines: list[_Line] = []
    for check in report.checks:
        for number, each in enumerate(check.findings):
            fix = f" -> {_text(each.fix)}" if each.fix else ""
            shown = _word(check, each.verdict, words)
            lines.append((shown, "" if number else _text(check.name), _text(each.evidence) + fix))
    return lines


def _word(check: Check, verdict: Verdict, words: Mapping[Verdict, str]) -> str:
    if verdict is Verdict.REFUTED and not check.decides and not words:
        return "advice"
    return words.get(verdict, verdict)


def _conclusion(report: Report, *, bus: bool) -> str:
    if report.verdict is Verdict.REFUTED:
        return "NOT PROVEN: there is a way"
    if report.verdict is Verdict.NOT_CHECKABLE:
        return "NOT PROVEN: not all could be checked"
    if bus:
        return "PROVEN: no way from the machine to the bus was found in anything that was checked"
    return "no bus was named: the machine's own doors are closed, and where it leads is told above"


def _tell_ways(output: Output, report: Report) -> None:
    for path in report.paths:
        output.line(f"  {_text(path)}")


def _text(name: str) -> str:
    """This writes bytes of a host's name that are no UTF-8 as text."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
