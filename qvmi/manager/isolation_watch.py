"""Whether the watched machine is proven to have no way to the bus: asked before codepacks start, and again.

QEMU tells of some changes of its devices by events, of a network that is added by none. So the question
is asked again at each such event, and now and then.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Never

from qvmi.errors import IsolationNotProven, MachineGone, QvmiError
from qvmi.manager.records import record
from qvmi.qmp.events import Event

__all__ = ["NOT_PROVEN", "IsolationCheck", "IsolationVerdict", "IsolationWatch", "changes_devices"]

CHECK_S: Final = 30.0
"""How often it is asked where QEMU says nothing; an answer takes some hundredths of a second."""

NOT_PROVEN: Final = "isolation: not proven"
"""What is said with each alert where nothing proves it."""

_CHANGES: Final = ("DEVICE_", "NETDEV_", "NIC_", "CHARDEV_")


@dataclass(frozen=True, slots=True)
class IsolationVerdict:
    """This is an answer.

    Args:
        proven: whether it is proven.
        why: the way that was found, or what could not be checked; empty where it is proven.
    """

    proven: bool
    why: str = ""


IsolationCheck = Callable[[], Awaitable[IsolationVerdict]]
"""Asks; it raises QvmiError where it cannot, which proves nothing."""


def changes_devices(event: Event) -> bool:
    """This tells whether an event says that the machine's devices are others than before."""
    return event.name.startswith(_CHANGES)


class IsolationWatch:
    """This asks, and tells when the answer changes.

    Args:
        check: asks.
        allowed: whether codepacks run though it is not proven.
        changed: is told each answer that differs from the one before.

    Attributes:
        verdict: the last answer.
    """

    def __init__(
        self,
        check: IsolationCheck,
        changed: Callable[[IsolationVerdict], Awaitable[None]],
        *,
        allowed: bool,
        interval_s: float | None = None,
    ) -> None:
        self.verdict = IsolationVerdict(proven=False, why="it was not checked yet")
        self.permitted = asyncio.Event()
        self._check = check
        self._changed = changed
        self._allowed = allowed
        self._interval_s = CHECK_S if interval_s is None else interval_s
        self._asked = asyncio.Event()

    @property
    def caveats(self) -> tuple[str, ...]:
        """These are to be said with each alert."""
        return () if self.verdict.proven else (NOT_PROVEN,)

    def ask_soon(self) -> None:
        """This has it asked again at once, as something has changed."""
        self._asked.set()

    async def require(self) -> None:
        """This asks for the first time.

        Raises:
            IsolationNotProven: it is not proven, and nobody has said that it need not be.
            MachineGone: QEMU has ended.
        """
        self.verdict = await self._answer()
        if not self.verdict.proven and not self._allowed:
            raise IsolationNotProven(
                f"isolation is not proven: {self.verdict.why}; see qvmi doctor, or allow it"
                " with --allow-unproven-isolation"
            )
        self.permitted.set()
        if not self.verdict.proven:
            record("codepacks run though isolation is not proven: %s", self.verdict.why)

    async def run(self) -> Never:
        """This asks again and again, until it is cancelled or QEMU has ended."""
        while True:
            self._asked.clear()
            try:
                async with asyncio.timeout(self._interval_s):
                    await self._asked.wait()
            except TimeoutError:
                pass
            before, self.verdict = self.verdict, await self._answer()
            if before.proven != self.verdict.proven:
                await self._turned()

    async def _turned(self) -> None:
        proven = self.verdict.proven
        record(
            "isolation is %s",
            "proven again" if proven else f"not proven any more: {self.verdict.why}",
        )
        if proven or self._allowed:
            self.permitted.set()
        else:
            self.permitted.clear()
        await self._changed(self.verdict)

    async def _answer(self) -> IsolationVerdict:
        try:
            return await self._check()
        except MachineGone:
            raise
        except QvmiError as error:
            return IsolationVerdict(proven=False, why=f"it cannot be checked: {error}")
