"""What at the guest's addresses is memory, as the machine is now: the rest is not to be looked at.

References: QEMU ``monitor/misc.c`` (``hmp_gva2gpa``), ``cpus-common.c`` and ``softmmu/physmem.c``
(``cpu_memory_rw_debug``, ``cpu_physical_memory_rw``: a debugger's reads, and those of ``xp``, reach devices).
"""

import asyncio
import re
from typing import Final

from qvmi.addr import PAGE_SIZE, Pa, PaRange
from qvmi.errors import QmpCommandFailed
from qvmi.manager.gateways.standstill import Standstill
from qvmi.memory.memory_map import RegionKind
from qvmi.memory.ranges import joined
from qvmi.qmp import commands
from qvmi.qmp.events import EventStream
from qvmi.qmp.monitor import Monitor

__all__ = ["GuestMemory"]

_FRESH_S: Final = 0.05
"""For so long what is memory is believed to be it while QEMU tells of nothing; to ask takes it a millisecond
or two. QEMU says nothing when a guest moves a device's window, and such a guest gains nothing by it."""
_MAX_PAGES: Final = 4096
"""Translations that are remembered while the guest stands still."""
_MEMORY: Final = frozenset({RegionKind.RAM, RegionKind.ROM})
_GPA: Final = re.compile(r"gpa: (0|0x[0-9a-f]{1,16})\r?\n?")


class GuestMemory:
    """This answers for one machine. A device may change when it is looked at, so nobody reads one.

    Args:
        monitor: the conversation with its QEMU.
        standstill: tells when the guest may have run, and its page tables be others.
        events: what QEMU tells, from before the first question on.

    Attributes:
        alone: is held from the judgement of a debugger's access to its end: a write of another's may
            change what addresses mean.
    """

    def __init__(self, monitor: Monitor, standstill: Standstill, events: EventStream) -> None:
        self.alone = asyncio.Lock()
        self._monitor = monitor
        self._events = events
        self._memory: tuple[PaRange, ...] = ()
        self._until = 0.0
        self._standstill = standstill
        self._epoch = 0
        self._pages: dict[tuple[int, int], int | None] = {}

    async def catch_up(self) -> None:
        """This forgets what may not hold any more; to be done before each access is judged.

        With the answer has come what QEMU told before it, as of a reset, or of memory that was unplugged.
        """
        await commands.run_state(self._monitor)
        # Which kinds change the map is not asked: the next release of QEMU may have another one.
        if [*self._events.so_far()]:
            self.forget()

    def forget(self) -> None:
        """This forgets all: the page tables, a register or the machine may be others now."""
        self._until = 0.0
        self._pages.clear()

    async def is_memory(self, wanted: PaRange) -> bool:
        """This tells whether all of a physical range is memory.

        Nothing is said to be none by an old map: memory that was plugged in QEMU tells nobody of.
        """
        now = asyncio.get_running_loop().time()
        if now < self._until and self._has(wanted):
            return True
        regions = (await commands.memory_map(self._monitor)).regions
        kept = (PaRange(one.start, one.end) for one in regions if one.kind in _MEMORY)
        self._memory = joined(kept)
        self._until = now + _FRESH_S
        return self._has(wanted)

    def _has(self, wanted: PaRange) -> bool:
        return any(one.start <= wanted.start and wanted.end <= one.end for one in self._memory)

    async def pieces(self, address: int, size: int, vcpu: int) -> tuple[PaRange, ...] | None:
        """This is where a range of a vCPU's addresses lies; None where not all of it is mapped.

        The guest must stand still until what was asked for is read.
        """
        end = address + size
        found: list[PaRange] = []
        while address < end:
            piece = min(end, (address // PAGE_SIZE + 1) * PAGE_SIZE) - address
            page = await self._translated(address // PAGE_SIZE, vcpu)
            if page is None:
                return None
            start = page + address % PAGE_SIZE
            found.append(PaRange(Pa(start), Pa(start + piece)))
            address += piece
        return tuple(found)

    async def _translated(self, page: int, vcpu: int) -> int | None:
        key = page, vcpu
        if self._epoch != self._standstill.epoch:
            self._epoch = self._standstill.epoch
            self._pages.clear()
        if key not in self._pages:
            if len(self._pages) >= _MAX_PAGES:
                self._pages.clear()
            self._pages[key] = await self._asked(page, vcpu)
        return self._pages[key]

    async def _asked(self, page: int, vcpu: int) -> int | None:
        line = {"command-line": f"gva2gpa {page * PAGE_SIZE:#x}", "cpu-index": vcpu}
        try:
            printed = await self._monitor.execute("human-monitor-command", line)
        except QmpCommandFailed:
            return None
        match = _GPA.fullmatch(printed) if isinstance(printed, str) else None
        return int(match[1], 16) if match else None
