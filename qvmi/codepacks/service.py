"""The contract of a service: a codepack with a loop of its own, which is not asked to look but lives.

What a codepack that only looks can do, it should do by looking: it is simpler, tested with bytes, and can be
timed, confirmed and told apart from others. A service is for what must wait: for others' alerts, for answers.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from inspect import iscoroutinefunction
from typing import Final, Protocol, TypeGuard

import msgspec

from qvmi.bus.bus import Bus, Publisher
from qvmi.bus.message import Message
from qvmi.bus.requests import Requests
from qvmi.bus.subscription import Subscription
from qvmi.bus.topic import Topic, TopicFilter
from qvmi.codepacks.alert import Alert
from qvmi.codepacks.alert_budget import AlertBudget
from qvmi.codepacks.codepack import Codepack, Finding
from qvmi.codepacks.confirmation import Confirmed
from qvmi.codepacks.looker import InspectedMachine
from qvmi.policy import Grant
from qvmi.view import Provenance

__all__ = ["MAX_STANDING", "ServiceBus", "ServicePack", "is_service"]

MAX_STANDING: Final = 1024
"""Alerts of a service that stand at a time, as many as are followed of one that looks."""


class ServiceBus:
    """This is a service's end of the bus, with what it is called there.

    Args:
        bus: its end of the channel; what it may publish and read there, the channel guards.
        publisher: takes its alerts, which must not be lost.
        vm: the machine's name on the bus.
        codepack: the service's own.
        budget: how many alerts it may raise.
        caveats: tells what whoever reads an alert must know of how it was found.
        held_by: what holds the service to its policy.
    """

    def __init__(  # noqa: PLR0913 - whom it speaks for, and what is said with it
        self,
        bus: Bus,
        publisher: Publisher,
        *,
        vm: str,
        codepack: str,
        budget: AlertBudget,
        caveats: Callable[[], tuple[str, ...]],
        held_by: str,
    ) -> None:
        self._caveats = caveats
        self._held_by = held_by
        self.vm = vm
        self.codepack = codepack
        self._bus = bus
        self._publisher = publisher
        self._budget = budget
        self._standing: dict[str, Alert] = {}
        self._saying = asyncio.Lock()

    async def raise_alert(self, finding: Finding, provenance: Provenance) -> bool:
        """This raises an alert; whether it is sure is the service's own business.

        Returns:
            False where one with this key stands already, or there were too many in a short time.

        Raises:
            BusError: the bus does not take it.
        """
        async with self._saying:  # who raises it at the same time is told that it stands
            has_room = (
                len(self._standing) < MAX_STANDING and self._budget.room(time.monotonic()) > 0
            )
            if finding.key in self._standing or not has_room:
                return False
            now = time.time()
            confirmed = Confirmed(finding, 1, now, now)
            alert = Alert.of(
                confirmed,
                codepack=self.codepack,
                provenance=provenance,
                caveats=self._caveats(),
                held_by=self._held_by,
            )
            await self._say(alert)
            self._budget.spend(1)
            self._standing[finding.key] = alert
            return True

    async def clear_alert(self, key: str, *, because: str) -> bool:
        """This clears an alert; False where none with this key stands. Raises BusError."""
        async with self._saying:
            raised = self._standing.get(key)
            if raised is None:
                return False
            cleared = Alert.of(
                Confirmed(raised.finding, 1, raised.first_seen, time.time()),
                codepack=self.codepack,
                provenance=raised.provenance,
                cleared_because=because or "no longer so",
                caveats=self._caveats(),
                held_by=self._held_by,
            )
            await self._say(cleared)
            del self._standing[key]
            return True

    async def ask(self, service: str, body: Mapping[str, object], *, deadline_s: float) -> Message:
        """This asks another codepack, or the manager; raises as :meth:`~qvmi.bus.bus.Bus.request`."""
        topic = Topic.of_request(self.vm, self.codepack, service)
        return await self._bus.request(topic, body, deadline_s=deadline_s)

    async def questions(self) -> Requests:
        """These are the questions of others to this service, from now on; see `Bus.serve`."""
        return await self._bus.serve(self.codepack, vm=self.vm)

    async def subscribe(self, topics: TopicFilter) -> Subscription:
        """This hears what others say, as far as it may; raises as :meth:`~qvmi.bus.bus.Bus.subscribe`."""
        return await self._bus.subscribe(topics)

    async def _say(self, alert: Alert) -> None:
        await self._publisher.publish(
            Message(
                vm=self.vm,
                codepack=self.codepack,
                kind=alert.state,
                time=time.time(),
                provenance=alert.provenance,
                body=msgspec.to_builtins(alert),
            )
        )


class ServicePack(Protocol):
    """This is a codepack that lives."""

    @property
    def name(self) -> str:
        """This is its name on the bus: 1 to 63 of a-z, 0-9 and -."""
        ...

    @property
    def grants(self) -> frozenset[Grant]:
        """These are the grants it needs."""
        ...

    async def serve(self, bus: ServiceBus, machine: InspectedMachine) -> None:
        """This lives until it is cancelled; it must then leave, and let nothing run on.

        It shares its event loop with others: what takes more than a moment belongs into
        `machine.query` or a thread. Walks of a guest are such. When it ends or raises, it is started
        again as its manifest says, with a new bus where that was lost.
        """
        ...


def is_service(pack: "Codepack | ServicePack") -> TypeGuard[ServicePack]:
    """This tells whether a codepack lives, and is not asked to look."""
    return iscoroutinefunction(getattr(pack, "serve", None))
