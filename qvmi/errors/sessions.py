"""What goes wrong between qvmi and QEMU, its gdbstub or gdb."""

from collections.abc import Sequence

from qvmi.errors.base import QvmiError

__all__ = [
    "AttachError",
    "GdbCommandFailed",
    "GdbError",
    "GdbTimeout",
    "GdbstubBusy",
    "GdbstubProtocolError",
    "GdbstubRequestFailed",
    "GdbstubTimeout",
    "MachineGone",
    "MemoryUnreachable",
    "NotADump",
    "NotGdbstub",
    "NotQmp",
    "QmpBusy",
    "QmpCommandFailed",
    "QmpProtocolError",
    "QmpTimeout",
    "SocketUnreachable",
]


class AttachError(QvmiError):
    """This machine could not be attached to.

    Attributes:
        target: the address that was tried, as the user gave it.
    """

    def __init__(self, target: str, reason: str) -> None:
        super().__init__(f"{target}: {reason}")
        self.target = target
        self.reason = reason


class SocketUnreachable(AttachError):
    """Nothing listens at this address, or it may not be opened."""


class NotQmp(AttachError):
    """Something listens at this address, but its first bytes are no QMP greeting."""


class QmpBusy(AttachError):
    """Another client holds this QMP socket, which serves one client at a time."""


class NotGdbstub(AttachError):
    """Something listens at this address, but it does not speak GDB's remote serial protocol."""


class GdbstubBusy(AttachError):
    """Another debugger holds this gdbstub, which serves one client at a time."""


class NotADump(AttachError):
    """This file holds no memory in a form that is understood, or contradicts itself."""


class MemoryUnreachable(AttachError):
    """The guest's RAM cannot be read in any way that was tried.

    Attributes:
        attempts: one line for each way that was tried, with the reason it failed and the fix.
    """

    def __init__(self, target: str, attempts: Sequence[str]) -> None:
        super().__init__(target, "no way to the guest's memory: " + "; ".join(attempts))
        self.attempts = tuple(attempts)


class MachineGone(QvmiError):
    """QEMU has ended, or it closed the session, while something was asked of it."""

    def __init__(self, doing: str) -> None:
        super().__init__(f"QEMU is gone (while doing: {doing})")
        self.doing = doing


class QmpCommandFailed(QvmiError):
    """QEMU refused this command.

    Attributes:
        command: the QMP command, or the monitor line.
        error_class: QMP's error class, such as ``GenericError``.
        description: QEMU's own words.
    """

    def __init__(self, command: str, error_class: str, description: str) -> None:
        super().__init__(f"{command}: {description} ({error_class})")
        self.command = command
        self.error_class = error_class
        self.description = description


class QmpTimeout(QvmiError):
    """QEMU did not answer this command in time."""

    def __init__(self, command: str, timeout_s: float) -> None:
        super().__init__(f"{command}: no answer from QEMU within {timeout_s:g} s")
        self.command = command
        self.timeout_s = timeout_s


class QmpProtocolError(QvmiError):
    """This answer of QEMU has not the documented form."""

    def __init__(self, command: str, problem: str) -> None:
        super().__init__(f"{command}: {problem}")
        self.command = command
        self.problem = problem


class GdbstubRequestFailed(QvmiError):
    """The gdbstub refused this request.

    Attributes:
        request: the packet's body, shortened.
        code: the stub's answer, such as ``E22``; None where it does not know the request at all.
    """

    def __init__(self, request: str, code: str | None) -> None:
        said = "not supported by this QEMU" if code is None else f"refused with {code}"
        super().__init__(f"gdbstub request {request!r}: {said}")
        self.request = request
        self.code = code


class GdbstubTimeout(QvmiError):
    """The gdbstub did not answer this request in time."""

    def __init__(self, request: str, timeout_s: float) -> None:
        super().__init__(f"gdbstub request {request!r}: no answer within {timeout_s:g} s")
        self.request = request
        self.timeout_s = timeout_s


class GdbstubProtocolError(QvmiError):
    """This answer of the gdbstub has not the documented form."""

    def __init__(self, request: str, problem: str) -> None:
        super().__init__(f"gdbstub, {request}: {problem}")
        self.request = request
        self.problem = problem


class GdbError(QvmiError):
    """The program gdb cannot be started, has ended, or says what nobody understands."""


class GdbCommandFailed(GdbError):
    """gdb refused this command.

    Attributes:
        command: as it was given.
        reason: gdb's own words.
    """

    def __init__(self, command: str, reason: str) -> None:
        super().__init__(f"gdb, {command!r}: {reason}")
        self.command = command
        self.reason = reason


class GdbTimeout(GdbError):
    """This command of gdb's did not end in time, and was broken off."""

    def __init__(self, command: str, timeout_s: float) -> None:
        super().__init__(f"gdb, {command!r}: not done within {timeout_s:g} s")
        self.command = command
        self.timeout_s = timeout_s
