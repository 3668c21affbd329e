"""A debugger's reads of what is not there, which cost as much to judge as others."""

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from qvmi.addr import PaRange
from qvmi.errors import PolicyDenied
from qvmi.gdbstub.packets import ThreadId
from qvmi.manager.gateways.judged_memory import JudgedMemory
from qvmi.manager.gateways.rsp_rules import Read
from qvmi.policy import READ_ONLY, Grant, Limits, PolicyGate
from tests.asynchronous import asynchronous

if TYPE_CHECKING:
    from qvmi.manager.gateways.guest_memory import GuestMemory
    from qvmi.manager.gateways.shared_stub import SharedStub

SELDOM = 0.001
"""Times a second: once in a quarter of an hour."""


class Unmapped:
    """This is a guest in which nothing is mapped."""

    def __init__(self) -> None:
        self.alone = asyncio.Lock()

    async def catch_up(self) -> None:
        """Nothing has changed."""

    async def pieces(self, _: int, __: int, ___: int) -> tuple[PaRange, ...] | None:
        return None


@asynchronous
async def test_reads_of_what_is_not_mapped_count_as_others_do() -> None:
    gate = PolicyGate("gdb", READ_ONLY.within(Grant.READ_MEMORY, Limits(per_second=SELDOM)))
    stub = cast("SharedStub", None)  # which nobody asks where nothing is
    unmapped = cast("GuestMemory", Unmapped())
    memory = JudgedMemory(gate, stub=stub, memory=unmapped, refused=print)
    assert await memory.read(Read(0x1000, 4), ThreadId(1, 1)) is None
    with pytest.raises(PolicyDenied, match="times a second"):
        await memory.read(Read(0x1000, 4), ThreadId(1, 1))
