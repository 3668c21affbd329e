"""One client's conversation with the QMP gateway: what it says in, what is to be done out, without I/O.

References: QEMU ``docs/interop/qmp-spec.rst`` (sections 2.2 to 2.5, 4), ``monitor/qmp.c``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from qvmi.errors import PolicyDenied
from qvmi.manager.gateways.qmp_requests import NO_ID, Refused, Request, Requests
from qvmi.manager.gateways.qmp_rules import (
    COMMANDS,
    CONT,
    LIST,
    NEGOTIATE,
    Allowed,
    Denied,
    judge,
)
from qvmi.policy import AddressRange, PolicyGate, Space
from qvmi.qmp.events import Event
from qvmi.qmp.monitor import QemuVersion

__all__ = ["Answer", "Do", "QmpConversation", "event", "failure", "greeting", "success"]

NOT_FOUND: Final = "CommandNotFound"
GENERIC: Final = "GenericError"


@dataclass(frozen=True, slots=True)
class Answer:
    """This is said to the client, and nothing is done.

    Args:
        said: the bytes.
        refused: what was refused, in words for the audit log; empty where nothing was.
        audited: the log has it already.
        last: the conversation is over.
    """

    said: bytes
    refused: str = ""
    audited: bool = False
    last: bool = False


@dataclass(frozen=True, slots=True)
class Do:
    """This is to be done for the client, who waits for an answer that carries the id."""

    what: Allowed
    id: object


class QmpConversation:
    """This follows one client.

    Args:
        gate: decides what it may do.
        clock: tells the seconds that the gate's rates go by.

    Attributes:
        negotiated: it has ended the negotiation, so that it is told of events.
    """

    def __init__(self, gate: PolicyGate, clock: Callable[[], float]) -> None:
        self.negotiated = False
        self._gate = gate
        self._clock = clock
        self._requests = Requests()

    def feed(self, data: bytes) -> Iterator[Answer | Do]:
        """This takes what the client says; what is to be done is done before the next is asked for."""
        for request in self._requests.feed(data):
            if isinstance(request, Refused):
                said = failure(request.id, GENERIC, request.reason)
                yield Answer(said, request.reason, last=request.fatal)
                if request.fatal:
                    return
            elif not self.negotiated or request.command == NEGOTIATE:
                yield self._negotiate(request)
            else:
                yield self._judged(request)

    def _negotiate(self, request: Request) -> Answer:
        if request.command != NEGOTIATE:
            said = f"Expecting capabilities negotiation with '{NEGOTIATE}'"
            return Answer(failure(request.id, NOT_FOUND, said))
        if self.negotiated:
            said = "Capabilities negotiation is already complete, command ignored"
            return Answer(failure(request.id, NOT_FOUND, said))
        if request.arguments not in ({}, {"enable": []}):
            said = "no capability is offered"
            return Answer(failure(request.id, GENERIC, said), f"{NEGOTIATE}: {said}")
        self.negotiated = True
        return Answer(success(request.id, {}))

    def _judged(self, request: Request) -> Answer | Do:
        verdict = judge(request)
        if isinstance(verdict, Denied):
            said = f"{request.command}: {verdict.reason}"
            kind = GENERIC if request.command in COMMANDS else NOT_FOUND
            return Answer(failure(request.id, kind, said), said)
        try:
            self._require(verdict)
        except PolicyDenied as error:
            said = str(error)
            return Answer(failure(request.id, GENERIC, said), said, audited=True)
        if verdict.command == LIST:
            return Answer(success(request.id, [{"name": name} for name in (*COMMANDS, NEGOTIATE)]))
        return Do(verdict, request.id)

    def _require(self, what: Allowed) -> None:
        if what.grant is None:
            return
        if what.command == CONT:  # its rate is that of what it ends
            self._gate.policy.require(what.grant, f"{self._gate.holder}: {CONT}")
            return
        memory = what.memory
        place = memory and AddressRange(Space.PHYSICAL, memory.start, memory.size)
        line = what.arguments.get("command-line", what.command)
        self._gate.require(what.grant, str(line), now=self._clock(), place=place)


def greeting(version: QemuVersion) -> bytes:
    """This is what a client is greeted with; nothing is offered beyond the plain protocol."""
    numbers = {"major": version.major, "minor": version.minor, "micro": version.micro}
    told = {"version": {"qemu": numbers, "package": version.package}, "capabilities": []}
    return _line({"QMP": told})


def success(number: object, value: object) -> bytes:
    """This is the answer to a command that was carried out."""
    return _line({"return": value, **_with(number)})


def failure(number: object, kind: str, reason: str) -> bytes:
    """This is the answer to a command that was not carried out."""
    return _line({"error": {"class": kind, "desc": reason}, **_with(number)})


def event(happened: Event) -> bytes:
    """This is an event, written anew."""
    told = msgspec.to_builtins(happened)
    data = {key: value for key, value in told.items() if key not in {"name", "at"}}
    seconds = int(happened.at)
    moment = {"seconds": seconds, "microseconds": int((happened.at - seconds) * 1e6)}
    return _line({
        "event": happened.name,
        **({"data": data.get("data", data)} if data else {}),
        "timestamp": moment,
    })  # fmt: skip


def _with(number: object) -> dict[str, object]:
    return {} if number is NO_ID else {"id": number}


def _line(told: object) -> bytes:
    return msgspec.json.encode(told) + b"\r\n"
