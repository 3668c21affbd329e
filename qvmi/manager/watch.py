"""Codepacks on: a machine is watched, and what is found comes over the bus as it happens."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, Protocol, Self

import msgspec

from qvmi.bus.account import Account
from qvmi.bus.broker import mosquitto
from qvmi.bus.bus import Bus, Channel, OpenChannel, first_of
from qvmi.bus.message import Message
from qvmi.bus.subscription import Subscription
from qvmi.bus.throttle import Admission, Throttle
from qvmi.bus.topic import ANY, TopicFilter, name_from
from qvmi.codepacks.codepack import Codepack
from qvmi.codepacks.event_bell import EventBell
from qvmi.codepacks.looker import InspectedMachine
from qvmi.codepacks.loop_watch import loop_watched
from qvmi.codepacks.manifest import Management
from qvmi.codepacks.outgoing import MAX_SENT_KEPT
from qvmi.codepacks.runner import Runner
from qvmi.codepacks.service import ServicePack
from qvmi.codepacks.status import STATUS, Sight, Status
from qvmi.errors import BusError, BusRefused, CodepackError, MachineGone
from qvmi.machine.events.event_stream import EventSource
from qvmi.manager.accounts import throttle_account
from qvmi.manager.companion import Companion
from qvmi.manager.losses import TELL_S, loss_status
from qvmi.manager.packs_here import WATCH, AnyRunner, PacksHere
from qvmi.manager.runner_end import RunnerEnd
from qvmi.policy import READ_ONLY, Policies, Policy

__all__ = ["Watch", "WatchedMachine", "watch"]

MAX_LOST_BUSES: Final = 5
"""Losses of the bus in a row after which it is given up."""

STABLE_S: Final = 60.0
"""A bus that held for so long was well; its loss does not count as one of a row."""

MAX_SEEN_IDS: Final = 16 * MAX_SENT_KEPT
"""Ids remembered to know a message again that is sent twice; enough for 16 codepacks."""

_FIRST_PAUSE_S: Final = 0.05
"""Between the first loss and the next attempt; each further one in a row takes twice as long."""

_NAME: Final = WATCH

_log: Final = logging.getLogger(__name__)


class WatchedMachine(InspectedMachine, Protocol):
    """This is what a watch needs of a machine."""

    @property
    def address(self) -> str:
        """This is the address it was attached by."""
        ...


@asynccontextmanager
async def watch(  # noqa: PLR0913 - all but two have a default
    machine: WatchedMachine,
    *,
    packs: Sequence[Codepack | ServicePack],
    bus: OpenChannel = mosquitto,
    vm: str | None = None,
    policy: Policy | Policies = READ_ONLY,
    management: Mapping[str, Management] | None = None,
    state: Path | None = None,
    events: EventSource | None = None,
    asked: Collection[str] = (),
    companions: Sequence[Companion] = (),
) -> AsyncIterator["Watch"]:
    """This runs codepacks against a machine for as long as the block lasts.

    Everything it starts, a broker included, ends with the block, however that ends.

    Args:
        machine: what to watch; it is not closed.
        packs: the codepacks.
        bus: opens the channel that they speak on; a mosquitto of our own unless told otherwise,
            such as :func:`qvmi.bus.local.in_process`.
        vm: the machine's name on the bus; None makes one of its address.
        policy: what codepacks may be granted: one for all, or each its own.
        management: what the manifest of a codepack says, by its name. Of it are kept to here: the longest
            look, which is told and left to itself, and how often in a row it may fail, after which it is
            given up. One that is not in it has some seconds, and may always fail.
        state: the folder in which alerts that stand are kept, so that the next watch does not raise them
            again; None to keep nothing.
        events: tells codepacks what happens in the guest; None for the machine itself, if it does.
        asked: names of codepacks that answer what they are asked, though they do not name that themselves;
            see `qvmi.codepacks.questions`.
        companions: who else works on the bus meanwhile.

    Raises:
        BrokerUnavailable: no broker could be started; the message says what to do.
        CodepackError: a codepack's name or interval cannot be used.
        PolicyDenied: a codepack needs a grant that its policy does not hold, or may not read all
            memory: what runs in this process is given all of it.
        UsageError: there are no codepacks, or two of one name, or the state folder cannot be used.
    """
    name = vm or name_from(machine.address)
    own = (TopicFilter(name, _NAME, ANY),)
    reader = Account(f"{name}.{_NAME}", publishes=own, reads=(TopicFilter(name),))
    counting = throttle_account()
    policies = Policies(policy) if isinstance(policy, Policy) else policy
    here = PacksHere(
        machine, vm=name, policies=policies, management=management or {}, state=state, asked=asked
    )
    runners = here.runners(packs)
    looking = [runner for runner in runners.values() if isinstance(runner, Runner)]
    bell = EventBell(events or _events_of(machine), looking)
    others = [companion.account for companion in companions]
    async with bus([reader, counting, *runners, *others]) as channel:
        documents = Watch(name, reader, runners, bell, companions)
        if isinstance(channel, Admission):
            documents.throttle = Throttle(
                channel, counting, runners, changed=documents.note_throttled
            )
        serving = asyncio.create_task(documents.serve(channel), name="qvmi-watch")
        serving.add_done_callback(documents.ended)
        try:
            yield documents
        finally:
            serving.cancel()
            await asyncio.wait({serving})


class Watch:
    """This iterates the messages of a watched machine as they arrive: alerts, clearances, statuses.

    The iteration ends with the block of :func:`watch`. It raises MachineGone when the machine is
    gone, CodepackError when every codepack is given up, and BusError when the bus is lost for good;
    what arrived before is delivered before.

    Attributes:
        vm: the machine's name on the bus.
        throttle: puts out a codepack that floods the bus; None where the bus lets in whom it likes.
    """

    def __init__(
        self,
        vm: str,
        reader: Account,
        runners: Mapping[Account, AnyRunner],
        bell: EventBell,
        companions: Sequence[Companion] = (),
    ) -> None:
        self._bell = bell
        self._companions = companions
        self.vm = vm
        self.throttle: Throttle | None = None
        self._reader = reader
        self._bus: Bus | None = None
        self._runners = runners
        self._subscription: Subscription | None = None
        self._changed = asyncio.Event()
        self._reader_lost = asyncio.Event()
        self._end: Exception | None = None
        self._told_lost = ""
        self._lost = 0
        self._seen: dict[str, None] = {}
        self._telling: set[asyncio.Task[None]] = set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        while True:
            subscription = self._subscription
            if subscription is None:
                await self._next_subscription()
                continue
            if subscription.dropped + subscription.refused > self._lost:
                return self._losses(subscription)
            try:
                message = await anext(subscription)
            except (StopAsyncIteration, BusError):
                self._leave(subscription)
            else:
                if self._is_new(message):
                    return message

    async def serve(self, channel: Channel) -> None:
        """This runs the codepacks until the machine is gone; :func:`watch` calls it."""
        throttling = None
        if self.throttle is not None:
            keeping = self.throttle.keep(channel)
            throttling = asyncio.create_task(keeping, name="qvmi-throttle")
        try:
            with loop_watched(self._note_held_up):
                await self._serve_beside_companions(channel)
        finally:
            if throttling is not None:
                throttling.cancel()
                await asyncio.wait({throttling})
        if all(runner.given_up for runner in self._runners.values()):
            account, runner = next(iter(self._runners.items()))
            raise CodepackError(account.name.removeprefix(f"{self.vm}."), runner.given_up)
        raise MachineGone("watch")

    async def note_throttled(self, speaker: str, why: str) -> None:
        """This is told by the throttle that a codepack is put out of the bus, or let in again."""
        name = speaker.removeprefix(f"{self.vm}.")
        problem = f"codepack {name} {why}" if why else f"codepack {name} is let in again"
        await self._publish(
            self._message(Status(sight=Sight.GAPS, problem=problem, lost=self._lost))
        )

    def _note_held_up(self, words: str) -> None:
        """This is told, when the event loop goes on, that somebody held it up."""
        message = self._message(Status(sight=Sight.GAPS, problem=words, lost=self._lost))
        telling = asyncio.create_task(self._publish(message), name="qvmi-watch-held-up")
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    def ended(self, serving: asyncio.Task[None]) -> None:
        """This takes in how :meth:`serve` ended: so ends the iteration."""
        error = None if serving.cancelled() else serving.exception()
        self._end = error if isinstance(error, Exception) else StopAsyncIteration()
        self._changed.set()

    async def _serve_beside_companions(self, channel: Channel) -> None:
        """This serves while companions work, who have connections of their own and outlive ours."""
        try:
            async with asyncio.TaskGroup() as group:
                beside = [
                    group.create_task(one.run(channel), name="qvmi-companion")
                    for one in self._companions
                ]
                await self._serve_until_gone(channel)
                for one in beside:
                    one.cancel()
        except ExceptionGroup as errors:
            raise first_of(errors) from None

    async def _serve_until_gone(self, channel: Channel) -> None:
        loop = asyncio.get_running_loop()
        losses, last = 0, ""
        while losses < MAX_LOST_BUSES:
            if losses:
                await asyncio.sleep(_FIRST_PAUSE_S * 2 ** (losses - 1))
            began = loop.time()
            try:
                return await self._session(channel)
            except BusRefused:
                raise
            except BusError as error:
                last = str(error)
                self._tell_lost(last)
            losses = 1 if loop.time() - began > STABLE_S else losses + 1
        raise BusError(f"the bus was lost {losses} times in a row: {last}")

    def _tell_lost(self, why: str) -> None:
        """This tells that the bus is lost, and not at each attempt the same."""
        if why != self._told_lost:
            _log.warning("the bus is lost: %s", why)
        self._told_lost = why

    def _tell_back(self) -> None:
        if self._told_lost:
            _log.warning("the bus is there again")
        self._told_lost = ""

    async def _session(self, channel: Channel) -> None:
        """This runs the codepacks over one set of connections, until the machine is gone."""
        async with AsyncExitStack() as stack:
            reader = self._bus = await channel.connect(self._reader)
            stack.push_async_callback(reader.close)
            subscription = await reader.subscribe(TopicFilter(self.vm))
            self._enter(subscription)
            ends = [
                RunnerEnd(account, runner, vm=self.vm) for account, runner in self._runners.items()
            ]
            for end in ends:
                stack.push_async_callback(end.close)
                await end.open(channel)
            self._tell_back()
            await self._run(channel, ends)
            await subscription.close()

    async def _run(self, channel: Channel, ends: Sequence[RunnerEnd]) -> None:
        """This runs all runners; the first error of one, or of the reader, ends the others."""
        try:
            async with asyncio.TaskGroup() as group:
                guard = group.create_task(self._require_reader(), name="qvmi-watch-reader")
                telling = group.create_task(self._tell_losses(), name="qvmi-watch-losses")
                ringing = group.create_task(self._bell.run(), name="qvmi-watch-events")
                async with asyncio.TaskGroup() as running:
                    for end in ends:
                        running.create_task(end.run(channel, self.throttle), name="qvmi-codepack")
                ringing.cancel()
                guard.cancel()
                telling.cancel()
        except ExceptionGroup as errors:
            raise first_of(errors) from None

    async def _tell_losses(self) -> None:
        """This tells others on the bus, now and then, of what this reader did not get."""
        told = 0
        while True:
            await asyncio.sleep(TELL_S)
            subscription = self._subscription
            if subscription is None:
                continue
            lost = subscription.dropped + subscription.refused
            if lost > told:
                message = self._message(loss_status(subscription.dropped, subscription.refused))
                self._is_new(message)  # it is told here by itself, and not again as it arrives
                await self._publish(message)
            told = lost

    async def _publish(self, message: Message) -> None:
        """This publishes something of its own; where there is no bus just now, nobody hears it."""
        if self._bus is not None:
            try:
                await self._bus.publish(message)
            except BusError as error:
                _log.warning("%s", error)

    async def _require_reader(self) -> None:
        await self._reader_lost.wait()
        raise BusError("the connection that reads the alerts is lost")

    async def _next_subscription(self) -> None:
        """This waits for the next session; it raises what the last one ended with."""
        if self._end is not None:
            raise self._end
        self._changed.clear()
        await self._changed.wait()

    def _enter(self, subscription: Subscription) -> None:
        self._subscription = subscription
        self._lost = 0
        self._reader_lost.clear()
        self._changed.set()

    def _leave(self, subscription: Subscription) -> None:
        """This lets go of a subscription that ended, unless there is a newer one already."""
        if self._subscription is subscription:
            self._subscription = None
            self._reader_lost.set()

    def _is_new(self, message: Message) -> bool:
        """This tells whether the message came for the first time, and remembers it."""
        if message.id in self._seen:
            return False
        self._seen[message.id] = None
        if len(self._seen) > MAX_SEEN_IDS:
            del self._seen[next(iter(self._seen))]
        return True

    def _losses(self, subscription: Subscription) -> Message:
        """This is a status that tells of messages which this reader did not get."""
        self._lost = subscription.dropped + subscription.refused
        return self._message(loss_status(subscription.dropped, subscription.refused))

    def _message(self, status: Status) -> Message:
        return Message(
            vm=self.vm,
            codepack=_NAME,
            kind=STATUS,
            time=time.time(),
            body=msgspec.to_builtins(status),
        )


def _events_of(machine: WatchedMachine) -> EventSource | None:
    """This is the machine, if it tells what happens in its guest; a fake one may not."""
    return machine if isinstance(machine, EventSource) else None
