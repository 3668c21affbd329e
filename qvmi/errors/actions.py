"""What cannot be done to a guest, or asked of it, or not in this time."""

from collections.abc import Mapping

from qvmi.errors.base import QvmiError

__all__ = [
    "AuditBroken",
    "AuditFailed",
    "GuestRunning",
    "IsolationNotProven",
    "NotDirect",
    "NotWritable",
    "PauseError",
    "PolicyDenied",
    "QueryTimeout",
    "ScanFailed",
    "StaleView",
    "StepRefused",
    "WriteFailed",
]


class GuestRunning(QvmiError):
    """The guest runs, and what was asked can only be answered while it stands still.

    Attributes:
        doing: what was asked.
    """

    def __init__(self, doing: str, why: str) -> None:
        super().__init__(f"{doing}: {why}")
        self.doing = doing


class IsolationNotProven(QvmiError):
    """Nothing proves that the watched machine has no way to the bus, so no codepack is started."""


class PauseError(QvmiError):
    """The guest cannot be stopped safely, or not for as short a time as was promised."""


class StepRefused(QvmiError):
    """This step of a response is not taken: there is nothing to take it at, or it is not what was meant."""


class NotWritable(QvmiError):
    """These guest bytes must not be written; nothing was changed.

    Attributes:
        address: the first address that must not be written.
        size: bytes to be written there.
        kind: ``physical`` or ``virtual``.
    """

    def __init__(self, address: int, size: int, *, kind: str, why: str) -> None:
        super().__init__(f"cannot write {size} bytes at {kind} address {address:#x}: {why}")
        self.address = address
        self.size = size
        self.kind = kind


class WriteFailed(QvmiError):
    """This change of the guest did not come about as it was asked for.

    Attributes:
        doing: what was written, and where.
        wanted: the bytes, or the values by register, that were written.
        found: what was there when it was read back; None where that failed too.
        restored: whether what was there before is there again.
    """

    def __init__(
        self,
        doing: str,
        wanted: bytes | Mapping[str, int],
        found: bytes | Mapping[str, int] | None,
        *,
        restored: bool,
    ) -> None:
        read = "nothing can be read back" if found is None else f"{_shown(found)} is read back"
        state = "what was there before is there again" if restored else "it was left so"
        super().__init__(f"{doing}: wrote {_shown(wanted)}, {read}; {state}")
        self.doing = doing
        self.wanted = wanted
        self.found = found
        self.restored = restored


class NotDirect(QvmiError):
    """The guest's memory is not direct, so it cannot be read on the event loop."""


class QueryTimeout(QvmiError):
    """What was asked of the guest did not end in the time it was given."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"the query did not end within {timeout_s:g} s")
        self.timeout_s = timeout_s


class ScanFailed(QvmiError):
    """A scan of guest memory that came to no end."""


class StaleView(QvmiError):
    """The guest was reset, or its kernel replaced, after this view was taken."""


class PolicyDenied(QvmiError):
    """This action needs a grant that is not held, or not so far.

    Attributes:
        action: what was refused.
        grant: what it needs.
        reason: which limit of the grant it is beyond; empty where the grant is not held at all.
    """

    def __init__(self, action: str, grant: str, *, reason: str = "") -> None:
        beyond = f"grant '{grant}': {reason}" if reason else f"needs grant '{grant}'"
        super().__init__(f"{action}: not granted ({beyond})")
        self.action = action
        self.grant = grant
        self.reason = reason


class AuditFailed(QvmiError):
    """This audit log cannot be written or read, so that nothing is done that it had to tell of."""

    def __init__(self, path: object, problem: str) -> None:
        super().__init__(f"audit log {path}: {problem}")
        self.path = path
        self.problem = problem


class AuditBroken(QvmiError):
    """This audit log is not as it was written; what is behind this line proves nothing."""

    def __init__(self, path: object, line: int, problem: str) -> None:
        super().__init__(f"audit log {path}, line {line}: {problem}")
        self.path = path
        self.line = line
        self.problem = problem


_MOST_SHOWN = 32
"""Bytes shown in a message; the attributes have them all."""


def _shown(value: bytes | Mapping[str, int]) -> str:
    """This is a value as messages show it."""
    if not isinstance(value, bytes):
        return ", ".join(f"{name}={number:#x}" for name, number in value.items())
    return value[:_MOST_SHOWN].hex() + ("…" if len(value) > _MOST_SHOWN else "")
