"""The stacks that a kernel runs on: one of each task, and some of each CPU for interrupts and exceptions.

References: Linux arch/x86/kernel/dumpstack_64.c (``get_stack_info``), arch/x86/kernel/irq_64.c
(``hardirq_stack_ptr``, in ``pcpu_hot`` from 6.2 to 6.14), arch/arm64/include/asm/stacktrace.h
(``irq_stack_ptr``), include/asm-generic/vmlinux.lds.h (the first task's, which tells the size of all).
"""

from collections.abc import Iterator
from enum import StrEnum
from functools import cached_property
from struct import Struct
from typing import Final, NamedTuple

from qvmi.addr import Va
from qvmi.errors import MemoryFault
from qvmi.memory.address_space import AddressSpace
from qvmi.symbols.layout import Symbols

__all__ = ["KernelStacks", "Stack", "StackKind"]

_POINTER: Final = Struct("<Q")
_COUNT: Final = Struct("<I")
_ADDRESSES: Final = 1 << 64
_ALIGNMENT: Final = 16
_MAX_CPUS: Final = 8192
"""``NR_CPUS`` of a distribution's kernel."""
_USUAL_SIZE: Final = 16 << 10
_SIZES: Final = (_USUAL_SIZE, 32 << 10, 64 << 10)
"""``THREAD_SIZE``: more with KASAN, or with pages of 64 KiB."""
_FIRST_STACK: Final = (
    ("__start_init_stack", "__end_init_stack"),  # since 6.10
    ("__start_init_task", "__end_init_task"),
)


class StackKind(StrEnum):
    """This is what a stack is for."""

    TASK = "task"
    IRQ = "irq"
    EXCEPTION = "exception"


class Stack(NamedTuple):
    """This is one stack, [start, end).

    Args:
        kind: what it is for.
        start: its lowest address.
        end: where it begins to be used, downwards.
        cpu: whose it is, by the kernel's number; None for a task's.
    """

    kind: StackKind
    start: Va
    end: Va
    cpu: int | None = None

    def holds(self, va: int) -> bool:
        """This tells whether an address is on it."""
        return self.start <= va < self.end


class KernelStacks:
    """This finds the stacks of one kernel.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols) -> None:
        self._space = space
        self._symbols = symbols
        self.size = self._task_stack_size()

    def of_task(self, base: int) -> Stack:
        """This is the stack of a task, by its ``task_struct.stack``."""
        return Stack(StackKind.TASK, Va(base), Va(base + self.size))

    @cached_property
    def of_cpus(self) -> tuple[Stack, ...]:
        """These are the stacks of all CPUs, as far as they can be read."""
        found: list[Stack] = []
        for cpu, area in enumerate(self._per_cpu_areas()):
            found += self._of_cpu(cpu, area)
        return tuple(found)

    def _of_cpu(self, cpu: int, area: int) -> Iterator[Stack]:
        top = self._variable(area, self._irq_stack_top)
        if top:
            end = -(-top // _ALIGNMENT) * _ALIGNMENT
            yield Stack(StackKind.IRQ, Va(end - self.size), Va(end), cpu)
        base = self._variable(area, self._symbols.find("irq_stack_ptr"))
        if base:
            yield Stack(StackKind.IRQ, Va(base), Va(base + self.size), cpu)
        base = self._variable(area, self._symbols.find("cea_exception_stacks"))
        size = self._symbols.size_of("cea_exception_stacks")
        if base and size:
            yield Stack(StackKind.EXCEPTION, Va(base), Va(base + size), cpu)

    @cached_property
    def _irq_stack_top(self) -> Va | None:
        hot = self._symbols.find("pcpu_hot")
        member = self._symbols.find_field("pcpu_hot", ("hardirq_stack_ptr",))
        if hot is not None and member is not None:
            return Va(hot + member.offset)
        return self._symbols.find("hardirq_stack_ptr")

    def _variable(self, area: int, at: Va | None) -> int:
        """This is a pointer of one CPU; 0 where there is none that can be read."""
        if at is None:
            return 0
        try:
            va = Va((area + at) % _ADDRESSES)
            found: int = _POINTER.unpack(self._space.read(va, _POINTER.size))[0]
        except MemoryFault:
            return 0
        return found

    def _per_cpu_areas(self) -> tuple[int, ...]:
        """This is what is added to the address of a variable for each CPU's own."""
        offsets, count = self._symbols.find("__per_cpu_offset"), self._symbols.find("nr_cpu_ids")
        if offsets is None:
            return ()
        try:
            cpus = 1
            if count is not None:
                cpus = min(_COUNT.unpack(self._space.read(count, _COUNT.size))[0], _MAX_CPUS)
            raw = self._space.read(offsets, _POINTER.size * cpus)
        except MemoryFault:
            return ()
        return Struct(f"<{cpus}Q").unpack(raw)

    def _task_stack_size(self) -> int:
        for names in _FIRST_STACK:
            start, end = (self._symbols.find(name) for name in names)
            if start is not None and end is not None and end - start in _SIZES:
                return end - start
        return _USUAL_SIZE
