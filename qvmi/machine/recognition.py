"""Which system runs in a machine: looked for once, known from then on."""

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from qvmi.errors import QvmiError, UnknownGuest, UsageError
from qvmi.machine.ways.remote_memory import RemoteMemory
from qvmi.machine.worker import in_worker
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.selection import Choices, remember, select, select_known
from qvmi.view import View

__all__ = ["Recognition"]

_logger = logging.getLogger(__name__)

_LOOKS: Final = 4
"""Looks at a guest that is not recognised, each by other page tables."""

Look = Callable[[View, Choices], LinuxGuest | None]


class Recognition:
    """This is what is known of the system in one machine.

    Args:
        choices: what is used to understand it.

    Attributes:
        guest: the system; None where none is recognised.
    """

    def __init__(self, choices: Choices) -> None:
        self.guest: LinuxGuest | None = None
        self._choices = choices
        self._problem: QvmiError | None = None

    def require(self) -> LinuxGuest:
        """This is the system.

        Raises:
            QvmiError: why none was recognised.
        """
        if self.guest is None:
            raise self._problem or UnknownGuest("nobody has looked yet which system runs here")
        return self.guest

    async def look(
        self,
        view: Callable[[], View],
        refresh: Callable[[], Awaitable[object]],
        ask_stub: Callable[[], Awaitable[object]],
    ) -> None:
        """This works out which system runs; what it is, or why it is none, is known afterwards.

        Args:
            view: makes a view of the machine as it is now.
            refresh: reads the registers anew.
            ask_stub: reads those too that the monitor does not tell, if that is wanted.
        """
        for _ in range(_LOOKS):
            # What was seen before takes a millisecond, what was not takes many, in a thread.
            if await self._tried(select_known, view()) or await self._tried(select, view()):
                return
            # The page tables may have been those of a process that has ended in the meantime.
            before = _roots(view())
            await refresh()
            if before == _roots(view()):
                break
        if None in before:
            await ask_stub()
            if None not in _roots(view()):
                await self._tried(select, view())

    def remember(self) -> None:
        """This keeps what was learned for the next attach."""
        if self.guest is not None:
            try:
                remember(self.guest, self._choices)
            except UsageError as error:
                _logger.warning("the profile of this kernel is not kept: %s", error)

    async def _tried(self, look: Look, view: View) -> bool:
        """This tells whether one way of looking has recognised what runs."""
        if look is select_known and not isinstance(view.memory, RemoteMemory):
            return self._recognises(look, view)
        return await in_worker(partial(self._recognises, look, view))

    def _recognises(self, look: Look, view: View) -> bool:
        self.guest, self._problem = None, None
        try:
            self.guest = look(view, self._choices)
        except QvmiError as error:
            self._problem = error
        return self.guest is not None


def _roots(view: View) -> set[int | None]:
    """These are the roots of the page tables that the vCPUs use; None is one that is not told."""
    return {vcpu.root_register for vcpu in view.vcpus}
