"""What is in memory of a process's mapping: runs of bytes by address, and what is swapped out as a gap.

References: Linux mm/memory.c (``handle_pte_fault``: an entry of zero was never touched; one that is not
present and not zero is swapped out, or kept from the process).
"""

from collections.abc import Iterator
from struct import Struct
from typing import Final

from qvmi.addr import PAGE_SIZE, Va
from qvmi.arch.paging import Extent, extents
from qvmi.errors import MemoryFault, TranslationFault, WalkFailed
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap, MemoryMapping, MemoryRun, Process
from qvmi.semantics.linux.structures.list import ListWalk
from qvmi.semantics.linux.tasks.mm import user_space
from qvmi.semantics.linux.tasks.task import Tasks
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["MemoryContents"]

_POINTER: Final = Struct("<Q")
_STEPS: Final = 1 << 14
"""Pages that are not there which one answer looks at: some 0.1 s. Who goes on begins behind them."""
_STRUCTURE: Final = "page tables"


class MemoryContents:
    """This reads the memory of the processes of one kernel.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        tasks: tells whether a process is still there.

    Raises:
        SymbolsError: the profile lacks what this needs.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols, tasks: Tasks) -> None:
        self._space = space
        self._symbols = symbols
        self._tasks = tasks
        self._read_pointer = space.unpacker(_POINTER)
        self._mm = field_offset(symbols, "task_struct", "mm")

    def of(
        self, process: Process, mapping: MemoryMapping, start: Va, limit: int
    ) -> ListWalk[MemoryRun]:
        """This gives what is in memory of a mapping from an address on; see the question of that name.

        Raises:
            WalkFailed: its page tables cannot be found.
        """
        user = self._user_space(process)
        found: ListWalk[MemoryRun] = ListWalk()
        if user is None:
            return found
        walk = _Walk(user, process.pid, found.gaps)
        try:
            for run in walk.runs(start, mapping.end, limit):
                found.rows[run.start] = run
        except TranslationFault as fault:
            walk.miss(walk.reached, mapping.end, str(fault))
            found.rows[walk.reached] = MemoryRun(walk.reached, mapping.end, b"")
        return found

    def _user_space(self, process: Process) -> AddressSpace | None:
        """This is the memory of a process; None where it has none any more."""
        try:
            self._tasks.require_there(process)
        except WalkFailed:
            return None
        try:
            if not self._read_pointer(process.address + self._mm)[0]:
                return None
        except MemoryFault as fault:
            raise WalkFailed("task_struct.mm", f"of process {process.pid}: {fault}") from fault
        return user_space(self._space, self._symbols, process.address)


class _Walk:
    """This walks through a range of one address space.

    Attributes:
        reached: everything before it was given.
    """

    def __init__(self, user: AddressSpace, pid: int, gaps: list[Gap]) -> None:
        self.reached = Va(0)
        self._user = user
        self._pid = pid
        self._gaps = gaps
        self._steps = _STEPS
        self._spans = {level.name: 1 << level.shift_bits for level in user.geometry.levels}

    def runs(self, start: Va, end: Va, limit: int) -> Iterator[MemoryRun]:
        """This iterates the runs of a range until they have so many bytes, or took so many steps.

        Raises:
            TranslationFault: the page tables are too many to be any.
        """
        user, self.reached = self._user, start
        for mapped in extents(user.memory.read, user.root, user.geometry, start, end):
            yield from self._absent(mapped.va)
            if self.reached < mapped.va:
                return
            size = min(mapped.size, limit)
            behind = Va(mapped.va + size)
            yield MemoryRun(mapped.va, behind, self._read(mapped, size))
            self.reached, limit = behind, limit - size
            if limit <= 0:
                return
        yield from self._absent(end)

    def miss(self, start: int, end: int, why: str) -> None:
        """This notes a range that cannot be looked at."""
        where = f"{end - start} bytes at {start:#x} of process {self._pid}"
        self._gaps.append(Gap(_STRUCTURE, Va(start), f"{where}: {why}"))

    def _read(self, mapped: Extent, size: int) -> bytes:
        try:
            return self._user.memory.read(mapped.pa, size)
        except MemoryFault as fault:  # a device's, or a lie
            self.miss(mapped.va, mapped.va + size, str(fault))
            return b""

    def _absent(self, end: int) -> Iterator[MemoryRun]:
        """This iterates the run, if any, up to which no page is in memory."""
        start, missing = self.reached, 0
        while self.reached < end and self._steps:
            self._steps -= 1
            missing += self._pass_by(end)
        if missing:
            self.miss(start, self.reached, f"{missing} pages are swapped out, or not accessible")
        if start < self.reached:
            yield MemoryRun(start, self.reached, b"")

    def _pass_by(self, end: int) -> bool:
        """This passes a page, or more that one entry stands for, and tells whether it is elsewhere."""
        span, elsewhere = PAGE_SIZE, False
        try:
            self._user.translate(self.reached)
        except TranslationFault as fault:
            elsewhere = fault.entry is None or fault.entry != 0
            span = self._spans.get(fault.level, PAGE_SIZE)
        self.reached = Va(min((self.reached | (span - 1)) + 1, end))
        return elsewhere
