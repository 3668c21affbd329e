"""What a watch prints of what codepacks say, and what its exit code depends on."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from qvmi.bus.message import Message
from qvmi.cli.exit_code import ExitCode
from qvmi.cli.printing.moments import local_moment
from qvmi.cli.printing.output import Output
from qvmi.codepacks.alert import Alert, AlertState
from qvmi.codepacks.alert_file import AlertFile
from qvmi.codepacks.codepack import Observation
from qvmi.codepacks.status import STATUS, Sight, Status
from qvmi.errors import BadMessage, UsageError
from qvmi.manager.response.records import HOLDER, RESPONSE, Record

__all__ = ["WatchReport", "facts_in_words", "observed"]

_KIND: Final = len(RESPONSE)
"""Letters of the longest kind of message, so that what is said stands in a column."""
_MOST_DECIMAL: Final = 0xFFFFFFFF
"""What is larger is an address, and nobody knows those by their decimal digits."""


class WatchReport:
    """This prints what the codepacks say, and keeps what the exit code depends on.

    Attributes:
        alerts: how many were raised.
        file: takes every message, too; None for no file.
    """

    def __init__(self, output: Output, packs: Sequence[str]) -> None:
        self._output = output
        self._sights: dict[str, Sight | None] = dict.fromkeys(packs)
        self._readers: Mapping[str, Callable[[Message], list[str]]] = {
            STATUS: self._status,
            AlertState.RAISED: self._alert,
            AlertState.CLEARED: self._alert,
        }
        self._standing: dict[str, int] = {}
        self._is_file_full = False
        self.alerts = 0
        self.file: AlertFile | None = None

    @property
    def found_anything(self) -> bool:
        """This tells whether there was an alert, or one of an earlier run stands."""
        return bool(self.alerts or any(self._standing.values()))

    @property
    def exit_code(self) -> ExitCode:
        """This says whether there was an alert, else whether everything could be seen."""
        if self.found_anything:
            return ExitCode.FOUND
        seen = all(sight is Sight.FULL for sight in self._sights.values())
        return ExitCode.FINE if seen else ExitCode.NOT_SEEN

    def add(self, message: Message) -> None:
        """This takes in a message and prints it at once.

        A codepack that is not ours may say anything. What nobody can read ends no watch of others; of
        whoever says it there is nothing to rely on.
        """
        try:
            lines = self._read(message)
            data = message.to_json()
        except BadMessage as error:
            self._sights[message.codepack] = Sight.FAILED
            self._output.message(f"{message.codepack}: what it says cannot be read: {error}")
            return
        if self._output.json:
            self._output.document(msgspec.json.decode(data))  # as it was on the bus
        else:
            moment = local_moment(message.time)
            for number, line in enumerate(lines):
                self._output.line(
                    f"    {line}" if number else f"{moment} {message.kind:<{_KIND}} {line}"
                )
        self._output.flush()
        if self.file is not None:
            self._keep(self.file, data)

    def _read(self, message: Message) -> list[str]:
        """This is what a message says, in lines; none for a kind that is none of ours.

        Raises:
            BadMessage: it is not of the form that its kind has.
        """
        if message.codepack == HOLDER:  # nobody else tells what was done
            return self._response(message) if message.kind == RESPONSE else self._said(message)
        reader = self._readers.get(message.kind)
        return [] if reader is None else reader(message)

    def _keep(self, file: AlertFile, data: bytes) -> None:
        """This appends a message to the file; that it cannot be written is told once, until it can."""
        try:
            file.add(data)
        except UsageError as error:
            if not self._is_file_full:
                self._output.message(str(error))
            self._is_file_full = True
        else:
            self._is_file_full = False

    def _response(self, message: Message) -> list[str]:
        return [message.read_body(Record).in_words]

    def _said(self, message: Message) -> list[str]:
        """This is a message that a playbook has asked for."""
        return [str(message.body.get("text", ""))]

    def _status(self, message: Message) -> list[str]:
        status = message.read_body(Status)
        self._sights[message.codepack] = status.sight
        self._standing[message.codepack] = status.standing
        problem = f": {status.problem}" if status.problem else ""
        standing = f", alerts of an earlier run that stand: {status.standing}"
        return [
            f"{message.codepack}: sight {status.sight}{standing if status.standing else ''}{problem}"
        ]

    def _alert(self, message: Message) -> list[str]:
        alert = message.read_body(Alert)
        finding = alert.finding
        self.alerts += alert.state is AlertState.RAISED
        because = f" ({alert.reason})" if alert.reason else ""
        because += "".join(f" [{caveat}]" for caveat in alert.caveats)
        return [
            f"{finding.severity} {finding.technique} {alert.codepack}: {finding.claim}{because}",
            *(observed(observation) for observation in finding.evidence),
        ]


def observed(observation: Observation) -> str:
    """This is what one view shows, on a line."""
    place = "" if observation.address is None else f" at {observation.address:#x}"
    facts = "".join(f", {fact}" for fact in facts_in_words(observation.facts))
    present = "present" if observation.present else "absent"
    structure = f" ({observation.structure})" if observation.structure else ""
    data = f", bytes {observation.data}" if observation.data else ""
    return f"{observation.view}: {present}{place}{structure}{facts}{data}"


def facts_in_words(facts: Mapping[str, object]) -> list[str]:
    """These are the facts of an observation, each with its name."""
    return [f"{name} {_in_words(value)}" for name, value in facts.items()]


def _in_words(value: object) -> str:
    if value in ("", None):
        return "-"
    return f"{value:#x}" if isinstance(value, int) and value > _MOST_DECIMAL else str(value)
