"""What goes wrong on the channel between codepacks, and in them."""

from qvmi.errors.base import QvmiError

__all__ = [
    "BadMessage",
    "BrokerUnavailable",
    "BusError",
    "BusNetworkFailed",
    "BusRefused",
    "CodepackError",
    "CodepackRefused",
    "InboxFull",
    "IsolationRefused",
    "LedgerFailed",
    "OutboxFull",
    "RequestTimeout",
]


class BusError(QvmiError):
    """This is the base of what can go wrong on the channel between codepacks."""


class BrokerUnavailable(BusError):
    """No broker could be started or reached; the message says what to install or to use."""


class BusRefused(BusError):
    """The broker refused this publish or subscription."""

    def __init__(self, topic: str, reason: str) -> None:
        super().__init__(f"{topic}: refused by the broker: {reason}")
        self.topic = topic
        self.reason = reason


class BadMessage(BusError):
    """These bytes are not a message of this version of qvmi."""


class LedgerFailed(BusError):
    """This database of messages cannot be used; the message says why."""

    def __init__(self, path: object, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


class OutboxFull(BusError):
    """So many messages wait in this outbox for receipts of its consumers that it takes no more."""


class InboxFull(BusError):
    """So many messages of one speaker wait here that no more are taken until there is room."""


class IsolationRefused(BusError):
    """No level of isolation can be had here that is safe; the message says why of each.

    Attributes:
        wanted: the level that was asked for.
        reasons: what stands against each way to it.
    """

    def __init__(self, wanted: str, reasons: tuple[str, ...]) -> None:
        super().__init__(f"no isolation of level {wanted}: {'; '.join(reasons)}")
        self.wanted = wanted
        self.reasons = reasons


class BusNetworkFailed(BusError):
    """A command that makes the bus network failed; what was made of it is gone again."""

    def __init__(self, command: str, said: str) -> None:
        super().__init__(f"{command}: {said}")
        self.command = command
        self.said = said


class RequestTimeout(BusError):
    """This request was not answered before its deadline; whether it was carried out is not known."""

    def __init__(self, topic: str, deadline_s: float) -> None:
        super().__init__(f"{topic}: no answer within {deadline_s:g} s")
        self.topic = topic
        self.deadline_s = deadline_s


class CodepackError(QvmiError):
    """This codepack cannot be loaded, or it failed."""

    def __init__(self, codepack: str, problem: str) -> None:
        super().__init__(f"codepack {codepack}: {problem}")
        self.codepack = codepack
        self.problem = problem


class CodepackRefused(CodepackError):
    """This codepack is not run: it is not signed, not as it was signed, or not what it says it is."""
