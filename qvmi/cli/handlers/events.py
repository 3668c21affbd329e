"""The command that prints what happens in a guest as it happens: ``events``."""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol

from qvmi.cli.exit_code import ExitCode
from qvmi.cli.printing.output import Output
from qvmi.cli.stop_signal import stop_signal
from qvmi.errors import MachineGone
from qvmi.machine.events.event_stream import EventAccount, EventStream
from qvmi.semantics.rows.events import (
    GuestChanged,
    GuestEvent,
    Missed,
    ModuleLoaded,
    ModuleUnloaded,
    Mounted,
    NotSeen,
    ProcessExeced,
    ProcessExited,
    ProcessStarted,
    SocketListening,
    Unmounted,
)
from qvmi.semantics.rows.processes import Process

__all__ = ["events"]

_UNSEEN: Final = (GuestChanged, Missed, NotSeen)
"""Behind these, there may be more than was told."""


class Watched(Protocol):
    """This is what the command needs of a machine."""

    @property
    def address(self) -> str:
        """This is how it was attached to."""
        ...

    def events(
        self, kinds: Collection[str] | None = None
    ) -> AbstractAsyncContextManager[EventStream]:
        """This watches without stopping the guest."""
        ...

    def exact_events(
        self, kinds: Collection[str] | None = None
    ) -> AbstractAsyncContextManager[EventStream]:
        """This watches by breakpoints."""
        ...


async def events(
    machine: Watched,
    output: Output,
    *,
    kinds: Sequence[str] | None,
    duration_s: float | None,
    exact: bool,
) -> ExitCode:
    """This prints events until Ctrl-C, until the time is up, or until the machine is gone.

    Raises:
        MachineGone: it ended.
        QvmiError: it cannot be watched.
    """
    watched = machine.exact_events(kinds) if exact else machine.events(kinds)
    report = _Report(output)
    with stop_signal() as stop:
        async with watched as stream:
            output.message(f"watching {machine.address} for events; Ctrl-C ends it")
            reading = asyncio.create_task(report.read(stream), name="qvmi-events")
            stopping = asyncio.create_task(stop.wait(), name="qvmi-stop")
            try:
                await asyncio.wait(
                    {reading, stopping}, timeout=duration_s, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                stopping.cancel()
        try:
            await reading
        except MachineGone:
            report.tell(stream.account)
            raise
    report.tell(stream.account)
    return ExitCode.NOT_SEEN if report.unseen or stream.account.missed else ExitCode.FINE


class _Report:
    """This prints events, and keeps what the exit code depends on.

    Attributes:
        unseen: whether something was missed, or could not be looked at.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self.unseen = False

    async def read(self, stream: EventStream) -> None:
        """This prints what comes."""
        async for event in stream:
            self.unseen = self.unseen or isinstance(event, _UNSEEN)
            if self._output.json:
                self._output.document(event)
            else:
                self._output.line(_line(event))
            if not stream.waiting:
                self._output.flush()

    def tell(self, account: EventAccount) -> None:
        """This prints how well the guest was watched."""
        if self._output.json:
            self._output.document(account)
        else:
            self._output.message(_in_words(account))
        self._output.flush()


def _in_words(account: EventAccount) -> str:
    if account.stops:
        still_ms = account.stood_still_s * 1000
        return (
            f"the guest was stopped {account.stops} times, for {still_ms:.1f} ms in all; under TCG it was"
            " slower besides"
        )
    share = account.cpu_s / account.watched_s if account.watched_s else 0.0
    forks = "" if account.forks is None else f"{account.forks} forks, {account.missed} missed; "
    return (
        f"{forks}{account.looks} looks in {account.watched_s:.1f} s, by {share:.1%} of a core;"
        f" {account.dropped} events dropped"
    )


def _line(event: GuestEvent) -> str:
    at = event.provenance.at
    moment = time.strftime("%H:%M:%S", time.localtime(at)) + f".{int(at % 1 * 1000):03}"
    kind: Any = type(event).__struct_config__.tag
    return f"{moment} {kind:<9} {_WORDS[type(event)](event)}"


def _process(process: Process) -> str:
    return f"pid {process.pid} ppid {process.ppid} uid {process.uid} {process.name}"


def _execed(event: ProcessExeced) -> str:
    was = "" if event.was is None else f", was {event.was}"
    more = "" if event.count == 1 else f", the last of {event.count}"
    return f"{_process(event.process)}{was}{more}"


def _exited(event: ProcessExited) -> str:
    status = "status unknown" if event.status is None else f"status {event.status:#x}"
    return f"pid {event.process.pid} {status} {event.process.name}"


def _missed(event: Missed) -> str:
    return f"{'an unknown number' if event.count is None else event.count} of {event.what}"


def _gap(event: NotSeen) -> str:
    place = "" if event.address is None else f" at {event.address:#x}"
    return f"{event.structure}{place}: {event.reason}"


def _changed(event: GuestChanged) -> str:
    if not event.release:
        return "another guest runs, which is not recognised yet"
    return f"Linux {event.release} is watched from now on"


_WORDS: Final[Mapping[type[GuestEvent], Callable[[Any], str]]] = {
    ProcessStarted: lambda event: _process(event.process),
    ProcessExeced: _execed,
    ProcessExited: _exited,
    ModuleLoaded: lambda event: f"{event.module.name} at {event.module.address:#x}",
    ModuleUnloaded: lambda event: event.module.name,
    SocketListening: lambda event: f"{event.socket.protocol} {event.socket.local}",
    Mounted: lambda event: f"{event.mount.filesystem} {event.mount.source} on {event.mount.path}",
    Unmounted: lambda event: (
        f"{event.mount.filesystem} {event.mount.source} from {event.mount.path}"
    ),
    Missed: _missed,
    NotSeen: _gap,
    GuestChanged: _changed,
}
