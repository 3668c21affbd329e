"""The manager of one machine: it holds QEMU's sockets and the broker, and runs codepacks as processes."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final, Never, Self

from qvmi.bus.broker import Broker, mosquitto
from qvmi.bus.bus import Channel, first_of
from qvmi.bus.message import Message
from qvmi.bus.throttle import Throttle
from qvmi.bus.topic import name_from
from qvmi.codepacks.status import Sight, Status
from qvmi.errors import BusError, MachineGone, QvmiError, UsageError
from qvmi.machine.machine import Machine
from qvmi.manager.accounts import consumer_account, throttle_account
from qvmi.manager.alert_log import AlertLog
from qvmi.manager.bus_service import BusService
from qvmi.manager.companion import Companion
from qvmi.manager.control_service import ControlService
from qvmi.manager.fleet import Fleet, Identities, identities
from qvmi.manager.home import Home, default_state_folder, share_socket
from qvmi.manager.isolation_watch import (
    IsolationCheck,
    IsolationVerdict,
    IsolationWatch,
    changes_devices,
)
from qvmi.manager.pack_process import PackProcess
from qvmi.manager.pack_spec import PackSpec
from qvmi.manager.records import note, record
from qvmi.manager.status_reader import StatusReader
from qvmi.manager.supervisor import Supervisor
from qvmi.policy import Grant

__all__ = ["MakeCheck", "Manager", "manage"]

MakeCheck = Callable[[Broker], IsolationCheck]
"""Makes the check that the watched machine has no way to a broker."""

_log: Final = logging.getLogger(__name__)


@asynccontextmanager
async def manage(  # noqa: PLR0913 - all but two have a default
    machine: Machine,
    packs: Sequence[PackSpec],
    *,
    vm: str | None = None,
    state: Path | None = None,
    isolation: MakeCheck | None = None,
    allow_unproven: bool = False,
    companions: Sequence[Companion] = (),
) -> AsyncIterator["Manager"]:
    """This runs codepacks, each in a process of its own, for as long as the block lasts.

    Everything it starts, the broker and all processes, ends with the block or with this process.
    Alerts that were not shown are kept, and come first the next time.

    Args:
        machine: what to watch; its policy must hold whatever a codepack's does. It is not closed.
        packs: the codepacks.
        vm: the machine's name on the bus; None makes one of its address.
        state: the folder for what is kept; None for the usual one.
        isolation: makes the check that the machine has no way to the bus; None proves nothing.
        allow_unproven: whether codepacks run though that is not proven.
        companions: who else works on the bus meanwhile.

    Raises:
        IsolationNotProven: it is not, and that is not allowed.
        BrokerUnavailable: no broker could be started; the message says what to do.
        CodepackError: a codepack's process cannot be started.
        PolicyDenied: a codepack may not read all memory, which each is given.
        NotDirect: the machine's RAM is not shared by QEMU.
        LedgerFailed: another manager has the state folder, or it cannot be used.
        UsageError: there are no codepacks, or two of one name, or there is no place for the state.
    """
    _require_usable(packs)
    name = vm or name_from(machine.address)
    async with AsyncExitStack() as stack:
        who = stack.enter_context(identities(len(packs)))
        home = Home(state or default_state_folder(), name)
        manager = Manager(machine, packs, home, who, vm=name, companions=companions)
        await manager.open(stack, home)
        home.take_back((*who.of_packs, who.group))
        await manager.prepare(isolation, allowed=allow_unproven)
        running = asyncio.create_task(manager.run(), name="qvmi-manager")
        running.add_done_callback(manager.ended)
        try:
            yield manager
        finally:
            running.cancel()
            await asyncio.wait({running})
            await manager.control.close()


class Manager:
    """This iterates what codepacks say: alerts, each once, clearances, and statuses.

    The iteration ends with the block of :func:`manage`. It raises MachineGone when the machine is gone,
    and whatever else ends the manager.

    Attributes:
        vm: the machine's name on the bus.
        control: answers the codepacks.
        fleet: their processes.
    """

    def __init__(
        self,
        machine: Machine,
        packs: Sequence[PackSpec],
        home: Home,
        who: Identities,
        *,
        vm: str,
        companions: Sequence[Companion] = (),
    ) -> None:
        self.vm = vm
        self._companions = companions
        self.control = ControlService(machine, {spec.name: spec.policy for spec in packs})
        self.fleet = Fleet(machine, packs, home, who, vm=vm)
        self._machine = machine
        self._packs = packs
        self._group = who.group
        self._service = BusService(self.control, vm=vm)
        self._consumer = consumer_account(vm)
        self._isolation = IsolationWatch(_unproven, self._isolation_changed, allowed=False)
        self._supervisors: dict[str, Supervisor] = {}
        self._alerts: asyncio.Queue[Message] = asyncio.Queue(maxsize=1)
        self._is_handed_out = False
        self._news = asyncio.Event()
        self._statuses = StatusReader(vm, self._news)
        self._end: Exception | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        if self._is_handed_out:
            self._is_handed_out = False
            self._alerts.task_done()
        while True:
            if not self._alerts.empty():
                self._is_handed_out = True
                return self._alerts.get_nowait()
            if self._statuses.arrived:
                return self._statuses.arrived.popleft()
            if self._end is not None:
                raise self._end
            self._news.clear()
            await self._news.wait()

    @property
    def broker(self) -> Broker:
        """This is the broker that the manager runs."""
        return self._broker

    async def open(self, stack: AsyncExitStack, home: Home) -> None:
        """This opens what is closed at the end: the alerts that were taken in, and the broker."""
        self._log = await AlertLog.open(home.alerts, self._consumer, vm=self.vm)
        stack.push_async_callback(self._log.close)
        counting = throttle_account()
        own = [self._service.account, self._consumer, self._statuses.account, counting]
        own += [companion.account for companion in self._companions]
        accounts = self.fleet.accounts
        self._broker = await stack.enter_async_context(mosquitto([*own, *accounts.all]))
        watched = accounts.all
        self._throttle = Throttle(self._broker, counting, watched, changed=self._throttled)
        accounts.admission, accounts.throttle = self._broker, self._throttle
        self.fleet.socket = self._broker.socket

    async def prepare(self, make_check: MakeCheck | None, *, allowed: bool) -> None:
        """This finds out what is proven and what is enforced.

        Raises:
            IsolationNotProven: it is not, and that is not allowed.
            CodepackError: no process can be started.
        """
        check = _unproven if make_check is None else make_check(self._broker)
        self._isolation = IsolationWatch(check, self._isolation_changed, allowed=allowed)
        await self.fleet.find_jail()
        if self._group is not None and self.fleet.jail.confinement.other_uid:
            share_socket(self._broker.socket, self._group)
        await self._isolation.require()
        note("codepacks of %s: %s", self.vm, self.fleet.jail.in_words)
        self.fleet.beware(self._isolation.caveats)

    async def run(self) -> Never:
        """This runs everything until the machine is gone; :func:`manage` calls it."""
        channel: Channel = self._broker
        work = {
            "service": self._service.run(channel),
            "alerts": self._log.consume(channel),
            "shown": self._show(),
            "statuses": self._statuses.run(channel),
            "losses": self._statuses.tell_losses(self._service.tell_status),
            "throttle": self._throttle.keep(channel),
            "isolation": self._isolation.run(),
            "qemu": self._follow_qemu(),
        }
        try:
            async with asyncio.TaskGroup() as group:
                for name, one in work.items():
                    group.create_task(one, name=f"qvmi-manager-{name}")
                for companion in self._companions:
                    group.create_task(companion.run(channel), name="qvmi-companion")
                group.create_task(self._run_packs(), name="qvmi-manager-packs")
        except ExceptionGroup as errors:
            raise first_of(errors) from None
        raise MachineGone("watch")

    def ended(self, running: asyncio.Task[Never]) -> None:
        """This takes in how :meth:`run` ended: so ends the iteration."""
        error = None if running.cancelled() else running.exception()
        self._end = error if isinstance(error, Exception) else StopAsyncIteration()
        self._news.set()

    async def began(self, spec: PackSpec, process: PackProcess) -> None:
        """This is told by a supervisor that a codepack's process runs."""
        self.fleet.running[spec.name] = process
        process.tell(self.fleet.caveats)
        words = f"codepack {spec.name} runs as process {process.pid}; {self.fleet.jail.in_words}"
        _log.info("%s", words)
        await self._service.tell_status(Status(sight=Sight.FULL, problem=""))

    async def stopped(self, spec: PackSpec) -> None:
        """This is told by a supervisor that it has ended: what it held of the guest ends with it."""
        self.fleet.running.pop(spec.name, None)
        await self.control.forget(spec.name)

    async def failed(self, spec: PackSpec, problem: str) -> None:
        """This is told by a supervisor that it has ended, and why."""
        await self.stopped(spec)
        words = f"codepack {spec.name}: {problem}"
        await self._service.tell_status(Status(sight=Sight.FAILED, problem=words))

    async def given_up(self, spec: PackSpec) -> None:
        """This is told by a supervisor that a codepack is not started again: its secrets end."""
        try:
            await self.fleet.accounts.revoke(spec.name)
        except BusError as error:
            record("codepack %s: its accounts are not revoked: %s", spec.name, error)

    async def is_machine_gone(self) -> bool:
        """This asks whether QEMU has ended."""
        try:
            await self._machine.run_state()
        except MachineGone:
            return True
        except QvmiError:
            return False
        return False

    async def _run_packs(self) -> Never:
        """This keeps all codepacks running until the machine is gone."""
        self._supervisors = {
            spec.name: Supervisor(spec, self.fleet.start, self, self._isolation.permitted)
            for spec in self._packs
        }
        running = (supervisor.run() for supervisor in self._supervisors.values())
        ends = await asyncio.gather(*running, return_exceptions=True)
        raise next(end for end in ends if isinstance(end, BaseException))

    async def _isolation_changed(self, verdict: IsolationVerdict) -> None:
        """This takes in that isolation is proven, or is not any more."""
        self.fleet.beware(self._isolation.caveats)
        if not self._isolation.permitted.is_set():
            for supervisor in self._supervisors.values():
                supervisor.stop()
        problem = "" if verdict.proven else f"isolation is not proven: {verdict.why}"
        sight = Sight.FULL if self._isolation.permitted.is_set() else Sight.BLIND
        await self._service.tell_status(Status(sight=sight, problem=problem))

    async def _throttled(self, speaker: str, why: str) -> None:
        """This takes in that a codepack is put out of the bus, or let in again."""
        supervisor = self._supervisors.get(speaker.removeprefix(f"{self.vm}."))
        if supervisor is None:
            return
        if why:
            supervisor.put_out(why)
        else:
            supervisor.let_in()

    async def _follow_qemu(self) -> Never:
        """This watches QEMU's events, and asks now and then where there are none."""
        with suppress(UsageError), self._machine.monitor.events() as events:
            try:
                async for event in events:
                    self._service.tell_state()
                    if changes_devices(event):
                        self._isolation.ask_soon()
            except MachineGone:
                self.control.note_gone()
                self._service.tell_state()
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    async def _show(self) -> Never:
        """This hands out the alerts one by one, each as the one before was taken."""
        async for message in self._log.messages():
            await self._alerts.put(message)
            self._news.set()
            await self._alerts.join()
        raise AssertionError("there is always one more to wait for")


async def _unproven() -> IsolationVerdict:
    return IsolationVerdict(proven=False, why="there is nothing that checks it")


def _require_usable(packs: Sequence[PackSpec]) -> None:
    names = [spec.name for spec in packs]
    if not names:
        raise UsageError("no codepacks: there is nothing to watch for")
    for spec in packs:
        if names.count(spec.name) > 1:
            raise UsageError(f"two codepacks are called {spec.name!r}")
        action = f"codepack {spec.name}: be given the guest's RAM"
        spec.policy.require_all(Grant.READ_MEMORY, action)
