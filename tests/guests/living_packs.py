"""Services: one that asks another codepack, and some that do not behave."""

import asyncio
import time

from qvmi.codepacks.codepack import Finding, Observation, Severity
from qvmi.codepacks.looker import InspectedMachine
from qvmi.codepacks.questions import LookAnswer
from qvmi.codepacks.service import ServiceBus
from qvmi.errors import BusError
from qvmi.machine.events.event_stream import EventSource
from qvmi.policy import Grant
from qvmi.semantics.rows.events import EventKind, ProcessExeced
from qvmi.semantics.rows.processes import Process

__all__ = ["Asking", "Blocking", "Following", "Staying"]


class _Service:
    grants = frozenset({Grant.READ_MEMORY})

    def __init__(self, interval_s: float) -> None:
        del interval_s


class Asking(_Service):
    """It asks who hides processes, looks for itself, and says so where both see the same."""

    name = "asking"

    async def serve(self, bus: ServiceBus, machine: InspectedMachine) -> None:
        while True:
            try:
                reply = await bus.ask("hidden-processes", {}, deadline_s=5.0)
            except BusError:  # it does not listen yet
                continue
            for item in reply.read_body(LookAnswer).items:
                seen = await machine.query(lambda guest: guest.process_ids(), timeout_s=30.0)
                addresses = {process.address for process in seen}
                place = item.finding.evidence[0].address
                if item.confirmed and place in addresses:
                    await bus.raise_alert(_agreed(item.finding), seen.provenance)


def _agreed(finding: Finding) -> Finding:
    place = finding.evidence[0].address
    return Finding(
        claim=f"two agree: {finding.claim}",
        severity=Severity.CRITICAL,
        technique=finding.technique,
        key=finding.key,
        evidence=(Observation(view="pid table", present=True, address=place),),
    )


class Following(_Service):
    """It says of each program of a name that it began."""

    name = "following"

    async def serve(self, bus: ServiceBus, machine: InspectedMachine) -> None:
        assert isinstance(machine, EventSource)
        async with machine.events([EventKind.EXECED]) as events:
            async for event in events:
                if isinstance(event, ProcessExeced) and event.process.name == "sleep":
                    await bus.raise_alert(_began(event.process), event.provenance)


def _began(process: Process) -> Finding:
    return Finding(
        claim=f"process {process.pid} sleeps",
        severity=Severity.LOW,
        technique="T1059",
        key=f"{process.pid}",
        evidence=(Observation(view="events", present=True, address=process.address),),
    )


class Blocking(_Service):
    """It never gives the event loop back."""

    name = "blocking"

    async def serve(self, bus: ServiceBus, machine: InspectedMachine) -> None:
        del bus, machine
        time.sleep(100_000)  # noqa: ASYNC251 - that is what it is for


class Staying(_Service):
    """It swallows its cancellation."""

    name = "staying"

    async def serve(self, bus: ServiceBus, machine: InspectedMachine) -> None:
        del bus, machine
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue
