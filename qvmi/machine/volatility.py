"""Asking Volatility's plugins about a guest: in a thread, which ends when nobody waits any more."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from threading import Thread
from typing import Final, TypeVar

from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.volatility_bridge.bridge import VolatilityBridge
from qvmi.semantics.volatility_bridge.interruption import Interrupted, Interruption
from qvmi.semantics.volatility_bridge.table import VolatilityTable

__all__ = ["VolatilityQueries"]

Answer = TypeVar("Answer")

_END_S: Final = 5.0
"""How long an interrupted plugin is waited for. It ends at its next read; before that it may search the
16 MiB it read last, which takes a second at most. One that never reads again is left behind."""


class VolatilityQueries:
    """This asks plugins about one machine or dump.

    Args:
        guest: gives the guest as it is to be seen now.
    """

    def __init__(self, guest: Callable[[], LinuxGuest]) -> None:
        self._guest = guest
        self.bridge = VolatilityBridge()

    async def ask(self, plugin: str, options: Mapping[str, object]) -> VolatilityTable:
        """This asks a plugin; see `qvmi.machine.machine.Machine.volatility`."""
        return await self.run(
            lambda guest, until: self.bridge.answer(guest, plugin, options, until), plugin
        )

    def walk(
        self, plugin: str, options: Mapping[str, object]
    ) -> Callable[[LinuxGuest], VolatilityTable]:
        """This makes a walk that asks a plugin; see `qvmi.machine.machine.Machine.capture`."""
        return lambda guest: self.bridge.answer(guest, plugin, options)

    async def run(
        self, question: Callable[[LinuxGuest, Interruption], Answer], name: str
    ) -> Answer:
        """This answers a question in a thread of its own.

        Whoever cancels it gets the plugin ended, and the guest's memory is left alone from then on.

        Args:
            question: asked of the guest; it ends soon after the interruption is asked for.
            name: of the question.

        Raises:
            QvmiError: whatever the question raises.
        """
        guest, interruption = self._guest(), Interruption()
        answer = _in_a_thread(lambda: question(guest, interruption), f"volatility {name}")
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            interruption.ask()
            await asyncio.wait([answer], timeout=_END_S)
            if answer.done() and not answer.cancelled():
                answer.exception()  # what came of it in the meantime nobody wants to know
            raise


def _in_a_thread(call: Callable[[], Answer], name: str) -> "asyncio.Future[Answer]":
    """This starts a call, and gives what will come of it.

    The threads of asyncio's own executor are joined when the program ends; one that hangs would
    hang the program. This one is a daemon.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Answer] = loop.create_future()

    def deliver(set_outcome: Callable[[], None]) -> None:
        if not future.done():
            set_outcome()

    def work() -> None:
        try:
            answer = call()
        except Interrupted:
            outcome: Callable[[], None] = future.cancel  # type: ignore[assignment] # its answer is dropped
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            problem = error
            outcome = lambda: future.set_exception(problem)  # noqa: E731 - as the others are
        else:
            outcome = lambda: future.set_result(answer)  # noqa: E731 - as above
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(deliver, outcome)

    Thread(target=work, name=name, daemon=True).start()
    return future
