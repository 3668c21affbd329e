"""What every way to a QEMU monitor offers: QMP commands and lines of the human monitor."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, Self

import msgspec

from qvmi.errors import QmpCommandFailed, QmpProtocolError, UsageError
from qvmi.qmp.events import EventStream

__all__ = [
    "ANSWER_TIMEOUT_S",
    "CONNECT_TIMEOUT_S",
    "NO_ARGUMENTS",
    "Monitor",
    "QemuVersion",
    "parse_version",
]

ANSWER_TIMEOUT_S: Final = 5.0
"""How long an answer may take by default.

QEMU answers within a millisecond; while it writes a snapshot or starts a migration it may hold its
lock for seconds.
"""

CONNECT_TIMEOUT_S: Final = 3.0
"""How long the connection and the greeting may take; QEMU needs a millisecond."""

NO_ARGUMENTS: Final[Mapping[str, object]] = {}
"""The arguments of a command that has none."""

# The human monitor has no error channel; these are the forms its refusals take.
# References: QEMU monitor/hmp.c (handle_hmp_command, monitor_parse_arguments),
# monitor/hmp-cmds.c (hmp_handle_error).
_REFUSAL_STARTS: Final = ("unknown command: ", "Error: ", "Command '", 'Command "')
_REFUSAL_END: Final = '" for more information\n'


class QemuVersion(msgspec.Struct, frozen=True, order=True):
    """This is a release of QEMU, such as 7.2.22; later ones are greater.

    Args:
        package: what the distributor adds, such as ``Debian 1:7.2+dfsg-7+deb12u18``.
    """

    major: int
    minor: int
    micro: int
    package: str = ""

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.micro}"


class _Version(msgspec.Struct, frozen=True):
    qemu: dict[str, int]
    package: str = ""


def parse_version(value: object) -> QemuVersion:
    """This reads the answer to ``query-version``, which is also part of the greeting.

    Raises:
        QmpProtocolError: it has not the documented form.
    """
    try:
        version = msgspec.convert(value, _Version)
        return msgspec.convert({**version.qemu, "package": version.package}, QemuVersion)
    except msgspec.ValidationError as error:
        raise QmpProtocolError("query-version", str(error)) from error


class Monitor(ABC):
    """This is a conversation with one QEMU."""

    @property
    @abstractmethod
    def target(self) -> str:
        """This is the address, as errors name it."""

    @property
    @abstractmethod
    def version(self) -> QemuVersion:
        """This is QEMU's release, known since the conversation began."""

    @abstractmethod
    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] = NO_ARGUMENTS,
        *,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> object:
        """This runs a QMP command; several may be under way at once.

        Returns:
            The value under ``return``: dicts, lists, str, int, float, bool, None.

        Raises:
            QmpCommandFailed: QEMU refused it.
            QmpTimeout: no answer in time; the session stays usable, a late answer is thrown away.
            QmpProtocolError: the answer is no QMP.
            MachineGone: QEMU has ended or closed the session.
            UsageError: the arguments cannot be written as JSON, or the session was closed by us.
        """

    @abstractmethod
    def peer_pid(self) -> int | None:
        """This is the process that listens at the other end; None where that cannot be known."""

    @property
    def descriptor(self) -> int | None:
        """This is the file descriptor of the conversation; None where it has none of its own."""
        return None

    @property
    def cont_command(self) -> Sequence[str]:
        """This is the command line that lets the machine run on where there is no descriptor."""
        return ()

    @property
    @abstractmethod
    def ended(self) -> bool:
        """This tells whether the conversation is known to be over; nothing is asked."""

    @property
    @abstractmethod
    def run_state_events(self) -> Mapping[str, int]:
        """This counts the `RUN_STATE_EVENTS` so far, by name; empty where events cannot be had.

        It is as up to date as the event loop, and misses none however slow its reader is.
        """

    @abstractmethod
    def events(self) -> EventStream:
        """This opens a stream of the events from now on; each stream is bounded.

        Raises:
            UsageError: this way to QEMU has no events.
        """

    @abstractmethod
    async def close(self, *, keep_open: bool = False) -> None:
        """This ends the conversation; the machine is left as it is.

        Args:
            keep_open: whether another process goes on with it, which holds a duplicate of `descriptor`.
        """

    async def hmp(self, line: str, *, timeout_s: float = ANSWER_TIMEOUT_S) -> str:
        r"""This runs a line of the human monitor and returns what it prints, with ``\n`` line ends.

        Raises:
            QmpCommandFailed: the monitor does not know the command, or refused it.
            UsageError: the line has control characters, which would be further lines.
        """
        if not line.isprintable():
            raise UsageError(f"{line!r}: a monitor line holds printable characters alone")
        printed = await self.execute(
            "human-monitor-command", {"command-line": line}, timeout_s=timeout_s
        )
        if not isinstance(printed, str):
            raise QmpProtocolError(line, f"expected text, got {type(printed).__name__}")
        printed = printed.replace("\r\n", "\n")
        if printed.startswith(_REFUSAL_STARTS) or printed.endswith(_REFUSAL_END):
            raise QmpCommandFailed(line, "HumanMonitor", " ".join(printed.split()))
        return printed

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
