"""What CPUs do: the tasks that run, wait for a CPU, or have their page tables loaded.

References: Linux kernel/sched/sched.h (``struct rq``: ``curr``, ``idle``, ``stop``, ``cfs_tasks``),
kernel/sched/fair.c (``account_entity_enqueue``), arch/x86/include/asm/tlbflush.h (``loaded_mm``; until
6.16 in a variable of its own name ``cpu_tlbstate``), mm_struct.owner (with control groups of memory).
"""

from struct import Struct
from typing import Final

from qvmi.addr import Va
from qvmi.errors import MemoryFault, WalkFailed
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.structures.list import ListShape, walk_list
from qvmi.semantics.linux.structures.percpu import PerCpu
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["RunQueues"]

_POINTER: Final = Struct("<Q")
_MAX_QUEUED: Final = 1 << 16
"""Tasks that wait for one CPU; a machine with more of them does nothing else."""
_QUEUES: Final = "runqueues"
_LOADED: Final = "cpu_tlbstate"
_KERNEL_HALF: Final = 1 << 63


class RunQueues:
    """This tells whom the CPUs of one kernel run.

    All of it changes a thousand times a second: who is not seen here is not therefore absent, and
    what cannot be followed in one moment is no gap.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        per_cpu: finds each CPU's own.

    Raises:
        SymbolsError: the profile lacks what this needs, or describes no possible layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols, per_cpu: PerCpu) -> None:
        self._space = space
        self._symbols = symbols
        self._per_cpu = per_cpu
        self._read_pointer = space.unpacker(_POINTER)
        self._node = field_offset(symbols, "task_struct", "se")
        self._node += field_offset(symbols, "sched_entity", "group_node")
        self._shape = ListShape(
            "rq.cfs_tasks",
            self._node,
            compile_reader(space, (self._node, "Q"), (self._node + 8, "Q")),
            lambda task, _: task,
            _MAX_QUEUED,
        )
        self._queue = self._member("rq", "cfs_tasks")
        self._loaded = self._member("tlb_state", "loaded_mm")
        self._owner = self._member("mm_struct", "owner")

    def running(self) -> list[int]:
        """These are the addresses of the tasks that CPUs run, and of those that wait to stop them.

        Raises:
            SymbolsError, WalkFailed, MemoryFault: it cannot be told where the CPUs have theirs.
        """
        members = [self._member("rq", name) for name in ("curr", "stop")]
        return [
            task
            for queue in self._per_cpu.copies(_QUEUES)
            for member in members
            for task in self._pointed(queue, member)
        ]

    def idle(self) -> set[int]:
        """These are those of the tasks that run where there is nothing to do; raises as :meth:`running`."""
        offset = self._member("rq", "idle")
        queues = self._per_cpu.copies(_QUEUES)
        return {task for queue in queues for task in self._pointed(queue, offset)}

    def queued(self) -> list[int]:
        """These are those of the tasks that the fair scheduler has to run; raises as :meth:`running`."""
        if self._queue is None:
            return []
        found: list[int] = []
        for queue in self._per_cpu.copies(_QUEUES):
            try:
                found += walk_list(self._space, Va(queue + self._queue), self._shape).rows
            except WalkFailed:
                continue
        return found

    def loaded(self) -> list[int]:
        """These are those of the tasks whose page tables CPUs have loaded; raises as :meth:`running`.

        Returns:
            None of them on aarch64, nor where the kernel keeps no owners of memory.
        """
        if self._symbols.find(_LOADED) is None:
            return []
        return [
            task
            for state in self._per_cpu.copies(_LOADED)
            for mm in self._pointed(state, self._loaded)
            for task in self._pointed(mm, self._owner)
        ]

    def _pointed(self, at: int, offset: int | None) -> list[int]:
        """This is what a member points to, if there is such a member and it points anywhere."""
        if offset is None:
            return []
        try:
            value = int(self._read_pointer(at + offset)[0])
        except MemoryFault:
            return []
        return [value] if value >= _KERNEL_HALF else []

    def _member(self, struct: str, name: str) -> int | None:
        found = self._symbols.find_field(struct, (name,))
        return None if found is None else found.offset
