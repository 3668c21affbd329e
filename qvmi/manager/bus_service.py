"""The manager's own end of the bus: it answers codepacks, and tells them what becomes of the machine."""

import asyncio
import logging
import time
from collections import Counter
from contextlib import AsyncExitStack
from typing import Final, Never

import msgspec

from qvmi.bus.bus import Bus, Channel, first_of
from qvmi.bus.message import Message
from qvmi.bus.requests import Request, Requests
from qvmi.codepacks.status import STATUS, Status
from qvmi.errors import BadMessage, BusError, BusRefused, QvmiError, UsageError
from qvmi.manager.accounts import MACHINE, MANAGER, service_account
from qvmi.manager.control_service import ControlService
from qvmi.manager.records import record
from qvmi.remote.messages import Answer
from qvmi.remote.refusal import Refusal

__all__ = ["MAX_AT_ONCE", "BusService"]

MAX_AT_ONCE: Final = 24
"""Requests of one codepack that are answered at a time: one for each lease it may hold, and some."""

_FIRST_PAUSE_S: Final = 0.05
_MAX_PAUSE_S: Final = 5.0
"""Longest time between two attempts to reach the broker."""
_TELL_S: Final = 2.0
"""How often the machine's state is told though it is as it was, for those who missed it."""

_log: Final = logging.getLogger(__name__)


class BusService:
    """This serves the codepacks of one machine.

    Args:
        control: decides and answers.
        account: the manager's.
        vm: the machine's name on the bus.
    """

    def __init__(self, control: ControlService, *, vm: str) -> None:
        self.account = service_account(vm)
        self._control = control
        self._vm = vm
        self._bus: Bus | None = None
        self._changed = asyncio.Event()
        self._under_way: Counter[str] = Counter()

    def tell_state(self) -> None:
        """This tells codepacks soon what became of the machine."""
        self._changed.set()

    async def tell_status(self, status: Status) -> None:
        """This publishes a status of the manager's own; where there is no bus just now, nobody hears it."""
        body: dict[str, object] = msgspec.to_builtins(status)
        if self._bus is not None:
            try:
                await self._bus.publish(self._message(STATUS, body))
            except BusError as error:
                _log.warning("%s", error)

    async def run(self, channel: Channel) -> Never:
        """This serves, over one connection after the other, until it is cancelled.

        Raises:
            BusRefused: the broker does not let the manager in.
        """
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                await self._session(channel)
            except BusRefused:
                raise
            except BusError as error:
                _log.debug("the bus is lost: %s", error)
            pause_s = _FIRST_PAUSE_S if self._bus is not None else min(2 * pause_s, _MAX_PAUSE_S)
            self._bus = None
            await asyncio.sleep(pause_s)

    async def _session(self, channel: Channel) -> None:
        async with AsyncExitStack() as stack:
            bus = await channel.connect(self.account)
            stack.push_async_callback(bus.close)
            requests = await bus.serve(MANAGER, vm=self._vm)
            self._bus = bus
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._tell_states(bus), name="qvmi-manager-states")
                    group.create_task(self._answer(requests, group), name="qvmi-manager-requests")
            except ExceptionGroup as errors:
                raise first_of(errors) from None

    async def _answer(self, requests: Requests, group: asyncio.TaskGroup) -> Never:
        async for request in requests:
            group.create_task(self._answer_one(request), name="qvmi-manager-answer")
        raise BusError("the connection on which requests come has ended")

    async def _answer_one(self, request: Request) -> None:
        """This answers, or refuses what is one too many; a reply too late is nobody's any more."""
        codepack = request.message.codepack
        if self._under_way[codepack] >= MAX_AT_ONCE:
            problem = f"{MAX_AT_ONCE} requests are under way already"
            await self._refuse(request, UsageError(problem))
            return
        self._under_way[codepack] += 1
        try:
            answer = await self._control.answer(codepack, dict(request.body))
            try:
                await request.reply(answer)
            except (
                BadMessage
            ) as error:  # too long, as of very many vCPUs: no matter of the connection's
                await self._refuse(request, error)
        finally:
            self._under_way[codepack] -= 1

    async def _refuse(self, request: Request, error: QvmiError) -> None:
        """This answers that a question cannot be answered, and tells the audit log."""
        record("codepack %s was refused: %s", request.message.codepack, error)
        answer = Answer(self._control.state, refusal=Refusal.of(error))
        await request.reply(msgspec.to_builtins(answer))

    async def _tell_states(self, bus: Bus) -> Never:
        while True:
            self._changed.clear()
            body: dict[str, object] = msgspec.to_builtins(self._control.state)
            await bus.publish(self._message(MACHINE, body))
            try:
                async with asyncio.timeout(_TELL_S):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _message(self, kind: str, body: dict[str, object]) -> Message:
        return Message(vm=self._vm, codepack=MANAGER, kind=kind, time=time.time(), body=body)
