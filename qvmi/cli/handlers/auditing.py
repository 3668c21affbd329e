"""The command about the audit log: ``audit``."""

from pathlib import Path

from qvmi.audit import verify
from qvmi.cli.exit_code import ExitCode
from qvmi.cli.printing.output import Output
from qvmi.errors import AuditBroken

__all__ = ["audit"]


def audit(output: Output, *, action: str, path: str, head: str | None) -> ExitCode:
    """This checks an audit log.

    Raises:
        AuditFailed: it cannot be read.
    """
    del action  # there is but one
    try:
        verified = verify(Path(path), head=head)
    except AuditBroken as error:
        if output.json:
            output.document({"intact": False, "line": error.line, "problem": error.problem})
        else:
            output.message(str(error))
        return ExitCode.FOUND
    if output.json:
        output.document({"intact": True, **verified._asdict()})
    elif not verified.records:
        output.line("the log is empty: there is no record in it")
    else:
        output.line(
            f"{verified.records} records, as they were written; the last one is {verified.head}"
        )
    return ExitCode.FINE
