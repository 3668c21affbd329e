"""What the command's exit code says, as scripts rely on it."""

from enum import IntEnum
from typing import Final

from qvmi.errors import (
    AttachError,
    AuditFailed,
    GdbstubProtocolError,
    GdbstubRequestFailed,
    GdbstubTimeout,
    MachineGone,
    QmpCommandFailed,
    QmpProtocolError,
    QmpTimeout,
    QvmiError,
    UsageError,
)

__all__ = ["ExitCode", "exit_code_of"]


class ExitCode(IntEnum):
    """This is one exit code of the ``qvmi`` command."""

    FINE = 0
    FOUND = 1
    """Something bad was found: an alert was raised."""
    USAGE = 2
    NOT_ATTACHED = 3
    """No session with the machine could be had, or it ended."""
    NOT_SEEN = 4
    """There is a machine, but not all that was asked for could be looked at."""
    BUG = 70
    """qvmi itself failed; ``EX_SOFTWARE`` of sysexits(3)."""
    INTERRUPTED = 130
    """Ctrl-C; 128 and the signal's number, as shells say."""
    NOBODY_READS = 141
    """Whoever read the output has ended; 128 and the number of SIGPIPE."""


_CODES: Final = (
    (UsageError, ExitCode.USAGE),
    (AuditFailed, ExitCode.USAGE),
    (AttachError, ExitCode.NOT_ATTACHED),
    (MachineGone, ExitCode.NOT_ATTACHED),
    (QmpCommandFailed, ExitCode.NOT_ATTACHED),
    (QmpTimeout, ExitCode.NOT_ATTACHED),
    (QmpProtocolError, ExitCode.NOT_ATTACHED),
    (GdbstubRequestFailed, ExitCode.NOT_ATTACHED),
    (GdbstubTimeout, ExitCode.NOT_ATTACHED),
    (GdbstubProtocolError, ExitCode.NOT_ATTACHED),
    (QvmiError, ExitCode.NOT_SEEN),
)


def exit_code_of(error: QvmiError) -> ExitCode:
    """This is the exit code that an error leads to."""
    return next(code for kind, code in _CODES if isinstance(error, kind))
