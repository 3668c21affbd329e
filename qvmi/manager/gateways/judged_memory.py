"""Reads and writes memory for one debugger: what is memory, and nothing that its policy does not grant.

References: see :mod:`qvmi.manager.gateways.guest_memory` for why no device may be looked at.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from qvmi.addr import Pa, PaRange
from qvmi.audit import LOGGER
from qvmi.gdbstub.packets import ThreadId, check_ok, hex_data, read_memory, write_memory
from qvmi.manager.gateways.guest_memory import GuestMemory
from qvmi.manager.gateways.rsp_rules import Read, Write
from qvmi.manager.gateways.shared_stub import SharedStub
from qvmi.policy import AddressRange, Grant, PolicyGate, Space

__all__ = ["JudgedMemory"]

_audit: Final = logging.getLogger(LOGGER)


class JudgedMemory:
    """This is the guest's memory as one debugger may see it; the guest stands still for it meanwhile.

    Args:
        gate: decides what it may do; its holder is the debugger.
        stub: the gdbstub that all share.
        memory: tells what is memory.
        refused: is told why something was refused that is no matter of the policy.

    Attributes:
        physical: its addresses are the guest's physical ones, and else those of a vCPU. That is its
            own: the stub, where it would be everybody's, is told of it for each access and then taken back.
    """

    def __init__(
        self,
        gate: PolicyGate,
        *,
        stub: SharedStub,
        memory: GuestMemory,
        refused: Callable[[str], object],
    ) -> None:
        self.physical = False
        self._gate = gate
        self._stub = stub
        self._memory = memory
        self._refused = refused

    async def read(self, wanted: Read, thread: ThreadId) -> bytes | None:
        """This is the stub's answer; None where no memory is.

        Raises:
            PolicyDenied: it may not be read, or not so often or so much.
            QvmiError: the stub does not answer.
        """
        async with self._memory.alone:
            if not await self._reachable(Grant.READ_MEMORY, wanted.address, wanted.size, thread):
                return None
            request = read_memory(wanted.address, wanted.size)
            return await self._ask("read memory", thread, request)

    async def write(self, wanted: Write, thread: ThreadId) -> bool:
        """This tells whether it was written: not where no memory is. The audit log has the old bytes first.

        Raises:
            PolicyDenied: it may not be written, or not so often or so much.
            GdbstubRequestFailed: the stub refused.
        """
        size = len(wanted.data)
        async with self._memory.alone:
            if not await self._reachable(Grant.WRITE, wanted.address, size, thread):
                return False
            read = read_memory(wanted.address, size)
            old = hex_data(read, await self._ask("read memory", thread, read), size)
            whose = "physical" if self.physical else f"vCPU {thread.vcpu}'s"
            told = (self._gate.holder, whose, wanted.address, old.hex(), wanted.data.hex())
            _audit.info("%s: writes at %s %#x: %s becomes %s", *told)
            request = write_memory(wanted.address, wanted.data)
            try:
                check_ok(request, await self._ask("write memory", thread, request))
            finally:
                self._memory.forget()  # the page tables may be what was written
        return True

    async def _ask(self, doing: str, thread: ThreadId, request: bytes) -> bytes:
        return await self._stub.ask(doing, thread, request, physical=self.physical)

    async def _reachable(self, grant: Grant, address: int, size: int, thread: ThreadId) -> bool:
        """This tells whether memory is there, and nothing else.

        Raises:
            PolicyDenied: it is neither among the virtual ranges that are granted nor, all of it, among
                the physical ones; or that is too much, or too often.
        """
        await self._memory.catch_up()
        pieces: Sequence[PaRange] | None = (PaRange(Pa(address), Pa(address + size)),)
        if not self.physical:
            pieces = await self._memory.pieces(address, size, thread.vcpu)
        asked = AddressRange(Space.PHYSICAL if self.physical else Space.VIRTUAL, address, size)
        action, now = f"{grant.value} {asked}", asyncio.get_running_loop().time()
        covered = self._gate.policy.limits_of(grant).covers(asked)
        if pieces is None:
            if covered:  # to find nothing counts, too: QEMU was asked
                self._gate.require(grant, action, now=now, place=asked, size=0)
            return False
        places = [asked]
        if not covered:
            places = [AddressRange(Space.PHYSICAL, one.start, one.size) for one in pieces]
        for place in places:
            self._gate.require(grant, action, now=now, place=place)
        for piece in pieces:
            if not await self._memory.is_memory(piece):
                self._refused(f"{asked}: a device, or nothing, and no memory")
                return False
        return True
