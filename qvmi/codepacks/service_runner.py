"""What runs a service: it is started, supervised, cancelled, and started again."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

import msgspec

from qvmi.bus.bus import Bus, Publisher
from qvmi.bus.message import Message
from qvmi.codepacks.alert import GUARD_RAILS
from qvmi.codepacks.alert_budget import AlertBudget
from qvmi.codepacks.look import in_words
from qvmi.codepacks.looker import ASK_INTERVAL_S, InspectedMachine
from qvmi.codepacks.manifest import Restart
from qvmi.codepacks.service import ServiceBus, ServicePack
from qvmi.codepacks.status import STATUS, Sight, Status, last_will
from qvmi.errors import CodepackError, MachineGone, QvmiError

__all__ = ["ServiceRunner"]

CANCEL_S: Final = 3.0
"""Longest wait for a service that is cancelled; then it is left to itself."""

STABLE_S: Final = 60.0
"""One that lived for so long was well; its end does not count as one of a row."""

_FIRST_PAUSE_S: Final = 0.1
"""Until one that has ended is started again; then twice as long each time."""
_MAX_PAUSE_S: Final = 30.0
"""Longest of them: what it waited for may be there again."""
_MAX_DOUBLINGS: Final = 10
"""With more of them it is the longest anyway, and in the end too large a number."""

_log: Final = logging.getLogger(__name__)


class ServiceRunner:
    """This keeps one service alive against one machine.

    In one process with others a service can hold everybody up: one that never gives the event loop back
    cannot be stopped, only told of, and one that swallows its cancellation is left to itself. In a process
    of its own it is ended.

    Args:
        pack: the service.
        machine: what it is given.
        vm: the machine's name on the bus.
        restart: when it is started again.
        max_failures: how often in a row; None for any number.
        caveats: tells what whoever reads its alerts must know.
        held_by: what holds it to its policy.

    Attributes:
        given_up: why it is not started again; empty while it lives.
        failed: whether its last end was a failure.
        left: whether it went on after it was cancelled.
    """

    def __init__(  # noqa: PLR0913 - all but three have a default
        self,
        pack: ServicePack,
        machine: InspectedMachine,
        *,
        vm: str,
        restart: Restart = Restart.ON_FAILURE,
        max_failures: int | None = None,
        caveats: Callable[[], tuple[str, ...]] = tuple,
        held_by: str = GUARD_RAILS,
    ) -> None:
        self._caveats = caveats
        self._held_by = held_by
        self.failed = False
        self.given_up = ""
        self.left = False
        self.name = pack.name
        self._pack = pack
        self._machine = machine
        self._vm = vm
        self._restart = restart
        self._max_failures = max_failures
        self._failures = self._lives = 0
        self._budget = AlertBudget()

    @property
    def will(self) -> Message:
        """This is what is to be published when nobody runs this any more."""
        return last_will(self._vm, self.name)

    async def run(self, bus: Bus, publisher: Publisher) -> None:
        """This keeps it alive until the machine is gone, or it is given up.

        Raises:
            BusError: the bus is lost; it can be called again with another.
        """
        while not self.given_up:
            self._lives += 1
            await self._tell(bus, Sight.FULL, "")
            began = time.monotonic()
            try:
                problem, self.failed = await self._live(bus, publisher)
            except MachineGone as error:
                await self._tell(bus, Sight.ENDED, in_words(error))
                return
            await self._tell(bus, Sight.FAILED, problem)  # which raises where the bus is lost
            self._failures = 1 if time.monotonic() - began > STABLE_S else self._failures + 1
            self.given_up = self._judged(problem)
            if self.given_up:
                await self._tell(bus, Sight.FAILED, self.given_up)
                return
            doublings = min(self._failures - 1, _MAX_DOUBLINGS)
            await asyncio.sleep(min(_FIRST_PAUSE_S * 2**doublings, _MAX_PAUSE_S))

    async def _live(self, bus: Bus, publisher: Publisher) -> tuple[str, bool]:
        """This is one life: how it ended, and whether that was a failure; MachineGone with the machine."""
        own = ServiceBus(
            bus,
            publisher,
            vm=self._vm,
            codepack=self.name,
            budget=self._budget,
            caveats=self._caveats,
            held_by=self._held_by,
        )
        life = asyncio.create_task(self._serve(own), name=f"qvmi-service-{self.name}")
        try:
            while not life.done():
                await asyncio.wait({life}, timeout=ASK_INTERVAL_S)
                await self._require_machine()
        finally:
            await self._end(life)
        if life.cancelled():
            return "it cancelled itself", True
        error = life.exception()
        if error is None:
            return "it ended by itself", False
        return in_words(error), True

    async def _serve(self, own: ServiceBus) -> None:
        """This is its life; that it wants the program to end says something about it alone."""
        try:
            await self._pack.serve(own, self._machine)
        except SystemExit as error:  # which a task would pass on to the event loop
            raise CodepackError(self.name, f"would end the program: {in_words(error)}") from error

    async def _require_machine(self) -> None:
        try:
            async with asyncio.timeout(ASK_INTERVAL_S):
                await self._machine.run_state()
        except MachineGone:
            raise
        except (QvmiError, TimeoutError) as error:
            _log.debug("%s: %s", self.name, error)

    async def _end(self, life: "asyncio.Task[None]") -> None:
        """This cancels it where it lives, and leaves it to itself where it does not end."""
        if not life.done():
            life.cancel()
            await asyncio.wait({life}, timeout=CANCEL_S)
        if life.done():
            if not life.cancelled():
                life.exception()  # it is of no use any more what went wrong
            return
        self.left = True
        _log.warning(
            "service %s does not end %g s after it was cancelled: it is left to itself",
            *(self.name, CANCEL_S),
        )

    def _judged(self, problem: str) -> str:
        """This is why it is given up, if its manifest says so."""
        fails = self.failed and self._restart is Restart.ON_FAILURE
        if not fails and self._restart is not Restart.ALWAYS:
            return f"given up: {problem}"
        if self._max_failures is not None and self._failures > self._max_failures:
            return f"given up, as it ended {self._failures} times in a row: {problem}"
        return ""

    async def _tell(self, bus: Bus, sight: Sight, problem: str) -> None:
        """This publishes how it is; BusError where the bus is lost."""
        status = Status(sight=sight, problem=problem, rounds=self._lives)
        message = Message(
            vm=self._vm,
            codepack=self.name,
            kind=STATUS,
            time=time.time(),
            body=msgspec.to_builtins(status),
        )
        await bus.publish(message, retain=True)
