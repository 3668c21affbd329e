"""The end of a bus that a codepack in this process speaks on, which it may be put out of for a while."""

import asyncio

from qvmi.bus.account import Account
from qvmi.bus.bus import Bus, Channel, Publisher
from qvmi.bus.throttle import Throttle
from qvmi.codepacks.runner import Runner
from qvmi.codepacks.service_runner import ServiceRunner
from qvmi.errors import BusError

__all__ = ["RunnerEnd", "run_with_questions"]


class RunnerEnd:
    """This is one codepack's end of a bus, opened anew after its account was put out for a while."""

    def __init__(self, account: Account, runner: Runner | ServiceRunner, *, vm: str) -> None:
        self._vm = vm
        self._account = account
        self._runner = runner
        self._bus: Bus | None = None

    async def open(self, channel: Channel) -> Bus:
        """This connects the account; raises as :meth:`~qvmi.bus.bus.Channel.connect`."""
        self._bus = await channel.connect(self._account, will=self._runner.will)
        return self._bus

    async def close(self) -> None:
        """This leaves the bus."""
        if self._bus is not None:
            await self._bus.close()

    async def run(self, channel: Channel, throttle: Throttle | None) -> None:
        """This runs the codepack until the machine is gone, with interruptions while it is put out.

        Raises:
            BusError: the bus is lost, and not because it was put out.
        """
        while True:
            try:
                bus = self._bus or await self.open(channel)
                return await self._run(bus)
            except BusError:
                if throttle is None or not await throttle.let_in(self._account):
                    raise
            await self.close()
            self._bus = None

    async def _run(self, bus: Bus) -> None:
        if isinstance(self._runner, ServiceRunner):
            await self._runner.run(bus, bus)
        else:
            await run_with_questions(self._runner, bus, bus, vm=self._vm)


async def run_with_questions(runner: Runner, bus: Bus, publisher: Publisher, *, vm: str) -> None:
    """This runs a codepack as `Runner.run` does, and has it asked by others if it answers.

    Args:
        runner: of the codepack.
        bus: its end of the channel, on which it is asked.
        publisher: takes what it says.
        vm: the machine's name on the bus.
    """
    if not runner.triggers.answers:
        await runner.run(publisher)
        return
    requests = await bus.serve(runner.name, vm=vm)
    heeding = asyncio.create_task(runner.questions.heed(requests), name="qvmi-questions")
    try:
        await runner.run(publisher)
    finally:
        heeding.cancel()
        await asyncio.wait({heeding})
