"""What goes on in the process of a codepack: looks at the machine, alerts into an outbox, over any bus."""

import asyncio
import logging
import os
import signal
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Final, Never, cast

from qvmi.bus import throttle
from qvmi.bus.bus import Bus, Channel, first_of
from qvmi.bus.message import Message
from qvmi.bus.mqtt import MqttChannel
from qvmi.bus.outbox import Outbox
from qvmi.bus.subscription import Subscription
from qvmi.bus.topic import Topic, TopicFilter
from qvmi.codepacks.codepack import Codepack
from qvmi.codepacks.event_bell import EventBell
from qvmi.codepacks.manifest import Restart
from qvmi.codepacks.packaging.pack_loader import load_any, load_installed
from qvmi.codepacks.runner import Runner
from qvmi.codepacks.service import ServicePack, is_service
from qvmi.codepacks.service_runner import ServiceRunner
from qvmi.codepacks.standing_alerts import StandingAlerts
from qvmi.errors import BadMessage, BusError, BusRefused, CodepackError, MachineGone, QvmiError
from qvmi.manager.accounts import (
    ALERTS,
    DURABLE_KINDS,
    MACHINE,
    MANAGER,
    answering_account,
    outbox_account,
    pack_login,
)
from qvmi.manager.orders import MAX_LINE, Caveats, Orders, read_line
from qvmi.manager.pack_code import received
from qvmi.manager.runner_end import run_with_questions
from qvmi.manager.timed_pack import START_S, TimedPack, ended_after
from qvmi.remote.messages import MachineState
from qvmi.remote.remote_machine import RemoteMachine
from qvmi.semantics.selection import Choices
from qvmi.symbols.profile import ProfileCache

__all__ = ["run_pack"]

_OUTBOX: Final = "outbox.db"
_STANDING: Final = "standing.json"
_ALIVE_S: Final = 1.0
"""How often a service's process says that its event loop runs."""
_FIRST_PAUSE_S: Final = 0.05
_MAX_PAUSE_S: Final = 5.0
"""Longest time between two attempts to reach the broker, which is started again in a second at most."""

_log: Final = logging.getLogger(__name__)


async def run_pack(orders: Orders) -> None:
    """This runs a codepack until the machine is gone.

    Raises:
        MachineGone: QEMU has ended.
        CodepackError: there is no such codepack.
        QvmiError: the bus refuses this process, or its outbox cannot be used.
    """
    session = _PackSession(orders)
    channel = MqttChannel(Path(orders.socket))
    async with AsyncExitStack() as stack:
        account = outbox_account(orders.vm, orders.codepack, orders.outbox_secret)
        outbox = await Outbox.open(
            Path.cwd() / _OUTBOX,
            account,
            vm=orders.vm,
            consumers=[ALERTS],
            max_per_s=throttle.PATIENT_SHARE * throttle.MAX_PER_S,
        )
        stack.push_async_callback(outbox.close)
        stack.push_async_callback(session.machine.close)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(session.hear(), name="qvmi-orders")
                group.create_task(outbox.deliver(channel), name="qvmi-outbox")
                group.create_task(session.run(channel, outbox), name="qvmi-session")
                group.create_task(session.stay_alive(), name="qvmi-alive")
        except ExceptionGroup as errors:
            raise first_of(errors) from None


class _PackSession:
    """This is a codepack that looks at a machine, over one connection to the bus after the other."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        with ended_after(START_S):
            made = _codepack(orders)
        self._pack = made if is_service(made) else TimedPack(cast("Codepack", made), orders.look_s)
        self._caveats = orders.caveats
        self._kept = StandingAlerts(Path.cwd() / _STANDING, vm=orders.vm, codepack=orders.codepack)
        self._bus: Bus | None = None
        self._runner: Runner | ServiceRunner | None = None
        self.machine = RemoteMachine(
            self._ask,
            orders.memory.mapped(orders.descriptors),
            Choices(cache=ProfileCache(Path(orders.profiles))),
            address=orders.address,
            reads_registers=orders.reads_registers,
        )

    async def hear(self) -> Never:
        """This takes in further orders, and ends this process with the manager's."""
        reader = asyncio.StreamReader(limit=MAX_LINE)
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            self._caveats = read_line(line, Caveats).caveats
        # The manager is gone. What this holds ends by itself; what is in the outbox is on the disk.
        os._exit(os.EX_OK)

    async def stay_alive(self) -> Never:
        """This has the kernel end the process where a service does not give the event loop back in time."""
        while True:
            if is_service(self._pack):
                signal.setitimer(signal.ITIMER_REAL, _ALIVE_S + 2 * self._orders.look_s)
            await asyncio.sleep(_ALIVE_S)

    async def run(self, channel: Channel, outbox: Outbox) -> Never:
        """This looks and publishes until the machine is gone, which it raises."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                await self._session(channel, outbox)
            except BusRefused:
                raise
            except BusError as error:
                _log.debug("the bus is lost: %s", error)
            else:
                raise MachineGone("watch")
            pause_s = _FIRST_PAUSE_S if self._bus is not None else min(2 * pause_s, _MAX_PAUSE_S)
            self._bus = None
            await asyncio.sleep(pause_s)

    async def _session(self, channel: Channel, outbox: Outbox) -> None:
        """This looks over one connection; BusError when that is lost."""
        orders = self._orders
        account = pack_login(orders.vm, orders.codepack, orders.secret, asks=orders.asks)
        if orders.triggers.answers:
            account = answering_account(account, self._orders.vm, self._orders.codepack)
        async with AsyncExitStack() as stack:
            bus = await channel.connect(account)
            stack.push_async_callback(bus.close)
            states = await bus.subscribe(TopicFilter(self._orders.vm, MANAGER, MACHINE))
            self._bus = bus
            listening = asyncio.create_task(self._listen(states), name="qvmi-machine")
            stack.callback(listening.cancel)
            if self._runner is None:
                self._runner = await self._first_look()
            publisher = _Publisher(bus, outbox)
            if isinstance(self._runner, ServiceRunner):
                await self._runner.run(bus, publisher)
                return self._require_alive(self._runner)
            bell = EventBell(self.machine, [self._runner])
            ringing = asyncio.create_task(bell.run(), name="qvmi-events")
            stack.push_async_callback(_cancelled, ringing)
            await run_with_questions(self._runner, bus, publisher, vm=self._orders.vm)
        return None

    def _require_alive(self, runner: ServiceRunner) -> None:
        """This raises CodepackError for a service that failed, so that its process counts as failed."""
        if runner.failed:
            raise CodepackError(self._orders.codepack, runner.given_up)

    async def _first_look(self) -> Runner | ServiceRunner:
        try:
            await self.machine.refresh()
        except (MachineGone, BusError):
            raise
        except QvmiError as error:  # the runner looks again, and reports what is wrong
            _log.debug("%s: %s", self._orders.codepack, error)
        if is_service(self._pack):
            # It has one life in a process, which the manager starts again as its manifest says.
            return ServiceRunner(
                self._pack,
                self.machine,
                vm=self._orders.vm,
                restart=Restart.NEVER,
                caveats=lambda: self._caveats,
                held_by=self._orders.held_by,
            )
        return Runner(
            cast("Codepack", self._pack),
            self.machine,
            vm=self._orders.vm,
            look_deadline_s=self._orders.look_s,
            caveats=lambda: self._caveats,
            held_by=self._orders.held_by,
            kept=self._kept,
            triggers=self._orders.triggers,
        )

    async def _listen(self, states: Subscription) -> None:
        """This takes in what the manager says of the machine by itself."""
        with suppress(BusError):
            async for message in states:
                with suppress(BadMessage):
                    self.machine.note(message.read_body(MachineState))

    async def _ask(self, question: dict[str, object], *, timeout_s: float) -> dict[str, object]:
        if self._bus is None:
            raise BusError("there is no connection to the bus just now")
        topic = Topic.of_request(self._orders.vm, self._orders.codepack, MANAGER)
        return (await self._bus.request(topic, question, deadline_s=timeout_s)).body


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait({task})


class _Publisher:
    """This puts what must not be lost into the outbox, and the rest onto the bus."""

    def __init__(self, bus: Bus, outbox: Outbox) -> None:
        self._bus = bus
        self._outbox = outbox

    async def publish(self, message: Message, *, retain: bool = False) -> None:
        """This takes a message; see :meth:`qvmi.bus.bus.Bus.publish`."""
        if message.kind in DURABLE_KINDS:
            await self._outbox.publish(message)
        else:
            await self._bus.publish(message, retain=retain)


def _codepack(orders: Orders) -> Codepack | ServicePack:
    """This makes the codepack; whatever its module does wrong is an error of the codepack's."""
    if orders.code is not None:
        return load_any(
            received(orders.code), **{**orders.options, "interval_s": orders.interval_s}
        )
    return load_installed(orders.codepack, orders.entry, orders.interval_s, **orders.options)
