"""One codepack's looks at one machine: each ends in time, with a result, whatever the codepack does."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar

from qvmi.codepacks.codepack import Codepack
from qvmi.codepacks.look import Look, in_words, look
from qvmi.codepacks.observed_guest import ObservedGuest
from qvmi.codepacks.resource_fetch import ResourceFetch, wants_resources
from qvmi.codepacks.resources import Resources, equipped
from qvmi.codepacks.shared_answers import SharedAnswers
from qvmi.codepacks.status import Sight
from qvmi.codepacks.thread_call import call_in_thread
from qvmi.errors import MachineGone, NotDirect, QueryTimeout, QvmiError, StaleView, UnknownGuest
from qvmi.memory.physical import PhysicalMemory
from qvmi.memory.resident import let_go
from qvmi.policy import READ_ONLY, Policy
from qvmi.semantics.guest_os import GuestOS
from qvmi.view import Provenance, Taken

__all__ = ["LOOK_DEADLINE_S", "InspectedMachine", "Looker", "blind"]

LOOK_DEADLINE_S: Final = 5.0
"""Longest look. The first one of a codepack may decode tables for a second on a loaded machine."""

WITHDRAW_GRACE_S: Final = 1.0
"""When a look is cancelled in its midst, how long the codepack has to leave the guest's memory."""

ASK_INTERVAL_S: Final = 1.0
"""Between two questions to the machine: whether it still is (its memory can be read after its end),
and which system runs there where none is recognised, which may take half a second to find out."""

_log: Final = logging.getLogger(__name__)

Found = TypeVar("Found")


class InspectedMachine(Protocol):
    """This is what looks need of a machine."""

    @property
    def guest(self) -> GuestOS:
        """This is the guest as of now; what it raises is reported, but NotDirect."""
        ...

    async def query(self, look: Callable[[GuestOS], Found], *, timeout_s: float) -> Found:
        """This looks at a guest whose memory is not direct; QueryTimeout if that takes too long."""
        ...

    @property
    def memory(self) -> PhysicalMemory:
        """This is the guest's memory."""
        ...

    @property
    def epoch(self) -> int:
        """This counts resets and kernel changes."""
        ...

    async def refresh(self) -> None:
        """This looks again which system runs; MachineGone if there is no machine any more."""
        ...

    async def run_state(self) -> object:
        """This asks the machine how it is; MachineGone if there is none any more."""
        ...


class Looker:
    """This lets one codepack look at one machine, one look after the other.

    Args:
        codepack: which.
        machine: at what.
        deadline_s: longest look; one that takes longer is reported and left to itself, and no other
            is begun until it ends.
        shared: answers that codepacks share; None for none.
        policy: what it may be shown beside memory.

    Raises:
        CodepackError: what it says that it wants cannot be used.
    """

    def __init__(
        self,
        codepack: Codepack,
        machine: InspectedMachine,
        *,
        deadline_s: float = LOOK_DEADLINE_S,
        shared: SharedAnswers | None = None,
        policy: Policy = READ_ONLY,
    ) -> None:
        self._fetch = (
            ResourceFetch(codepack, machine, policy) if wants_resources(codepack) else None
        )
        self._fetched: Resources | Look | None = None
        self._shared = shared
        self._not_before = 0.0
        self._codepack = codepack
        self._machine = machine
        self._deadline_s = deadline_s
        self._looking: asyncio.Future[Look] | None = None
        self._is_inspecting = False
        self._next_life_check = 0.0
        self._next_refresh = 0.0

    @property
    def waits(self) -> bool:
        """This tells whether it has to wait before a look for what it is shown beside memory."""
        return self._fetch is not None

    async def fetch(self) -> None:
        """This waits for what the next look is shown beside memory, if it is shown anything.

        Raises:
            MachineGone: the machine itself says so.
        """
        if self._fetch is None or self._is_looking:
            return
        try:
            async with asyncio.timeout(self._deadline_s):
                self._fetched = await self._fetch.fetch()
        except TimeoutError:
            self._fetched = self._late()
        except QvmiError as error:
            await self._recover(error)
            self._fetched = blind(error)

    async def look(self) -> Look:
        """This looks once; MachineGone only if the machine itself says so."""
        try:
            return await self._look()
        finally:
            self._not_before = time.monotonic()

    async def _look(self) -> Look:
        await self._require_machine()
        if self._is_looking:
            return self._late()
        if self._fetched is None:
            await self.fetch()
        resources, self._fetched = self._fetched, None
        if isinstance(resources, Look):
            return resources
        try:
            guest = self._observed(self._machine.guest, resources)
            memory = self._machine.memory
        except NotDirect:
            return await self._look_by_query(resources)
        except QvmiError as error:
            await self._recover(error)
            return blind(error)
        result = await self._look_in_thread(self._shown(resources), guest, memory)
        if result.error is not None:
            await self._recover(result.error)
        return result

    @property
    def _is_looking(self) -> bool:
        """This tells whether a look that was late still goes on."""
        in_thread = self._looking is not None and not self._looking.done()
        return in_thread or self._is_inspecting

    def _shown(self, resources: Resources | None) -> Codepack:
        """This is the codepack for one look, with what it is shown in it."""
        if resources is None or self._fetch is None:
            return self._codepack
        return equipped(self._fetch.pack, resources)

    def _observed(self, guest: GuestOS, resources: Resources | None) -> ObservedGuest:
        """This is the guest as this look is shown it: no answer is one that the look before had."""
        observed = ObservedGuest(
            guest, self._codepack.name, shared=self._shared, not_before=self._not_before
        )
        for listing in () if resources is None else resources.listings:
            observed.note(listing)
        return observed

    async def _look_in_thread(
        self, codepack: Codepack, guest: ObservedGuest, memory: PhysicalMemory
    ) -> Look:
        """This looks in a thread, so that a codepack that hangs stops nobody else."""

        def inspect() -> Look:
            result = look(codepack, guest, memory)
            let_go(memory)
            return result

        looking = self._looking = call_in_thread(inspect, name=f"qvmi-{codepack.name}")
        try:
            await asyncio.wait({looking}, timeout=self._deadline_s)
        except asyncio.CancelledError:
            guest.withdraw()
            await asyncio.wait({looking}, timeout=WITHDRAW_GRACE_S)
            raise
        if looking.done():
            return looking.result()
        guest.withdraw()
        return self._late()

    async def _look_by_query(self, resources: Resources | None) -> Look:
        """This leaves the thread to the machine, which alone can wait for its memory."""
        codepack = self._shown(resources)

        def inspect(guest: GuestOS) -> Look:
            self._is_inspecting = True
            try:
                observed = self._observed(guest, resources)
                return look(codepack, observed, self._machine.memory)
            finally:
                self._is_inspecting = False

        try:
            result = await self._machine.query(inspect, timeout_s=self._deadline_s)
        except QueryTimeout:
            return self._late()
        except QvmiError as error:
            result = blind(error)
        if result.error is not None:
            await self._recover(result.error)
        return result

    async def _require_machine(self) -> None:
        """This raises MachineGone if the machine is; one that does not answer may yet be read."""
        now = time.monotonic()
        if now >= self._next_life_check:
            self._next_life_check = now + ASK_INTERVAL_S
            await self._ask(self._machine.run_state())

    async def _recover(self, error: BaseException) -> None:
        """This lets the machine look again where that may help, and end if it is gone."""
        now = time.monotonic()
        if isinstance(error, StaleView | UnknownGuest | MachineGone) and now >= self._next_refresh:
            self._next_refresh = now + ASK_INTERVAL_S
            await self._ask(self._machine.refresh())

    async def _ask(self, question: Awaitable[object]) -> None:
        """This awaits something of the machine; that it is gone is the only answer that matters."""
        try:
            async with asyncio.timeout(self._deadline_s):
                await question
        except MachineGone:
            raise
        except (QvmiError, TimeoutError) as error:
            _log.debug("%s: %s", self._codepack.name, error)

    def _late(self) -> Look:
        problem = f"not finished after {self._deadline_s:g} s"
        return Look(Sight.LATE, Provenance(Taken.LIVE, time.time()), problem=problem)


def blind(error: QvmiError, *, sight: Sight = Sight.BLIND) -> Look:
    """This is the result of a look at a guest that could not be looked at."""
    provenance = Provenance(Taken.LIVE, time.time())
    return Look(sight, provenance, problem=in_words(error), error=error)
