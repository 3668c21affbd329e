"""The QMP gateway: serves many clients over one conversation with QEMU."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from typing import Final

from qvmi.addr import PaRange
from qvmi.audit import LOGGER
from qvmi.errors import QmpCommandFailed, QvmiError
from qvmi.manager.gateways.doorway import Visitor
from qvmi.manager.gateways.guest_memory import GuestMemory
from qvmi.manager.gateways.outlet import Outlet, hear, talk
from qvmi.manager.gateways.qmp_conversation import (
    GENERIC,
    Answer,
    Do,
    QmpConversation,
    event,
    failure,
    greeting,
    success,
)
from qvmi.manager.gateways.qmp_rules import CONT, EVENTS, STOP, Allowed
from qvmi.manager.gateways.standstill import Standstill
from qvmi.policy import Policy, PolicyGate
from qvmi.qmp.events import EventsLost, EventStream
from qvmi.qmp.monitor import Monitor

__all__ = ["MAX_REFUSALS", "QmpGateway"]

MAX_REFUSALS: Final = 256
"""So often a client is refused something before it is sent away: each refusal is written to the disk."""

_audit: Final = logging.getLogger(LOGGER)


class QmpGateway:
    """This serves the clients of one machine.

    Args:
        monitor: the conversation with its QEMU.
        standstill: who keeps the guest from running.
        policy: what each client may do.
        memory: tells what is memory.
    """

    def __init__(
        self, monitor: Monitor, standstill: Standstill, policy: Policy, memory: GuestMemory
    ) -> None:
        self._monitor = monitor
        self._standstill = standstill
        self._policy = policy
        self._memory = memory

    async def serve(self, connection: socket.socket, visitor: Visitor) -> None:
        """This serves one client until it has gone; a guest that it has stopped goes on then."""
        outlet = Outlet(connection)
        gate = PolicyGate(str(visitor), self._policy)
        conversation = QmpConversation(gate, asyncio.get_running_loop().time)
        outlet.say(greeting(self._monitor.version))
        try:
            with self._monitor.events() as events:
                listening = self._listen(connection, visitor, conversation, outlet)
                telling = _tell(events, conversation, outlet)
                limit = self._standstill.too_long(visitor, gate.longest_pause_s)
                await talk(outlet, listening, telling, limit)
        finally:
            if self._standstill.holds(visitor):
                await self._standstill.release(visitor)
                _audit.info("%s: has gone while it held the guest", visitor)

    async def _listen(
        self,
        connection: socket.socket,
        visitor: Visitor,
        conversation: QmpConversation,
        outlet: Outlet,
    ) -> None:
        refusals = 0
        while data := await hear(connection):
            async for answer in self._answers(visitor, conversation, data):
                if answer.refused:
                    refusals += 1
                if answer.refused and not answer.audited:
                    _audit.warning("refused: %s: %s", visitor, answer.refused)
                outlet.say(answer.said)
                # What is asked next waits until this was heard: nobody can pile up answers.
                await outlet.heard()
                if answer.last or refusals >= MAX_REFUSALS:
                    return

    async def _answers(
        self, visitor: Visitor, conversation: QmpConversation, data: bytes
    ) -> AsyncIterator[Answer]:
        for step in conversation.feed(data):
            yield step if isinstance(step, Answer) else await self._done(visitor, step)

    async def _done(self, visitor: Visitor, step: Do) -> Answer:
        what = step.what
        try:
            if what.memory is not None and not await self._is_memory(what.memory):
                why = f"{what.memory.start:#x}: a device, or nothing, and no memory"
                return Answer(failure(step.id, GENERIC, why), f"{what.command}: {why}")
            if what.command in {STOP, CONT}:
                return await self._stop_or_cont(visitor, step)
            return Answer(success(step.id, await self._carried_out(what)))
        except QmpCommandFailed as error:
            return Answer(failure(step.id, error.error_class, error.description))
        except QvmiError as error:
            return Answer(failure(step.id, GENERIC, str(error)))

    async def _is_memory(self, wanted: PaRange) -> bool:
        await self._memory.catch_up()
        return await self._memory.is_memory(wanted)

    async def _carried_out(self, what: Allowed) -> object:
        return await self._monitor.execute(what.command, what.arguments)

    async def _stop_or_cont(self, visitor: Visitor, step: Do) -> Answer:
        still = self._standstill
        _audit.info("%s: %s", visitor, step.what.command)
        if step.what.command == STOP:
            await still.hold(visitor)
        elif still.holds(visitor):
            await still.release(visitor)
        elif not await still.runs():
            whose = "another client of this gateway holds it" if still.held else "its owner has"
            why = f"cont: the guest was not stopped by you: {whose}"
            return Answer(failure(step.id, GENERIC, why), why)
        return Answer(success(step.id, {}))


async def _tell(events: EventStream, conversation: QmpConversation, outlet: Outlet) -> None:
    """This tells a client of events, once it has ended the negotiation."""
    async for happened in events:
        known = happened.name in EVENTS and not isinstance(happened, EventsLost)
        if conversation.negotiated and known:
            outlet.say(event(happened))
