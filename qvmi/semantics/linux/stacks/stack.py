"""Kernel stacks of tasks: of those that sleep from where they were put to sleep, of others from registers.

References: Linux kernel/stacktrace.c (``stack_trace_save_tsk``), arch/x86/kernel/unwind_orc.c
(``__unwind_start``), arch/arm64/kernel/stacktrace.c (``kunwind_init_from_task``),
arch/x86/entry/entry_64.S (``__switch_to_asm``), include/linux/sched.h (``on_cpu``, ``nvcsw``).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qvmi.addr import Va
from qvmi.arch.registers import Registers
from qvmi.errors import MemoryFault, SymbolsError, WalkFailed
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap, Process, Thread
from qvmi.semantics.linux.modules.code import KernelCode
from qvmi.semantics.linux.modules.module import Modules
from qvmi.semantics.linux.stacks.orc import OrcRows
from qvmi.semantics.linux.stacks.stack_info import KernelStacks
from qvmi.semantics.linux.stacks.task_position import NotSeen, TaskOnCpu, saved_position
from qvmi.semantics.linux.stacks.unwind import Frame, How, Position, StackWords, Unwound, scanned
from qvmi.semantics.linux.stacks.unwind_frame_records import FrameRecords
from qvmi.semantics.linux.stacks.unwind_orc import OrcUnwinder
from qvmi.semantics.linux.structures.list import ListWalk
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.semantics.linux.tasks.task import Tasks
from qvmi.semantics.rows.stacks import StackFrame
from qvmi.symbols.layout import NearestSymbol, Symbols, field_offset

__all__ = ["TaskStacks"]

_LOOKS: Final = 5
"""A task that has run in each of so many looks does not sleep long enough to be looked at."""
_MAX_SCANNED: Final = 256
"""Words that may be return addresses: a stack of 16 KiB seldom has more than 50."""
_STRUCTURE: Final = "task_struct.stack"

Nearest = Callable[[Va], NearestSymbol | None]
"""The symbol at or before an address; may raise WalkFailed."""


@dataclass(frozen=True, slots=True)
class _Task:
    """This is what is known of a task before its stack is looked at; it changes when the task runs.

    Args:
        stack: its lowest address; 0 for what is left of one that has ended.
        switches: how often it has left a CPU.
        on_cpu: whether one runs it.
        cpu: which one ran it last, by the kernel's number.
    """

    stack: int
    switches: tuple[int, int]
    on_cpu: bool
    cpu: int


class TaskStacks:
    """This unwinds the kernel stacks of one kernel's tasks.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        tasks: lists the tasks.
        modules: lists the modules.
        nearest: names code.

    Raises:
        SymbolsError: the profile lacks what this needs, or describes no possible layout.
    """

    def __init__(
        self,
        space: AddressSpace,
        symbols: Symbols,
        *,
        tasks: Tasks,
        modules: Modules,
        nearest: Nearest,
    ) -> None:
        self._space = space
        self._symbols = symbols
        self._tasks = tasks
        self._modules = modules
        self._nearest = nearest
        self._stacks = KernelStacks(space, symbols)
        self._read = _task_reader(space, symbols)

    def of(self, task: Process | Thread, vcpus: Sequence[Registers]) -> ListWalk[StackFrame]:
        """This unwinds the stack of a task.

        Args:
            task: which one.
            vcpus: the registers of this very moment; none where they are not known.

        Raises:
            WalkFailed: the task is gone.
        """
        retries = 0
        while True:
            self._require_there(task)
            try:
                before = self._task(task)
                walk = self._look(task, before, vcpus)
                if before == self._task(task):
                    walk.retries = retries
                    return walk
                why = (
                    "it runs again and again while it is looked at; look while the guest is paused"
                )
            except MemoryFault as fault:
                why = str(fault)
            retries += 1
            if retries == _LOOKS:
                return ListWalk(gaps=[Gap(_STRUCTURE, task.address, why)], retries=retries)

    def _require_there(self, task: Process | Thread) -> None:
        if isinstance(task, Thread):
            self._tasks.require_thread(task)
        else:
            self._tasks.require_there(task)

    def _task(self, task: Process | Thread) -> _Task:
        stack, nvcsw, nivcsw, on_cpu, cpu = self._read(task.address)
        return _Task(stack, (nvcsw, nivcsw), bool(on_cpu), cpu)

    def _look(
        self, task: Process | Thread, known: _Task, vcpus: Sequence[Registers]
    ) -> ListWalk[StackFrame]:
        if not known.stack:  # it has ended
            return ListWalk()
        stack = self._stacks.of_task(known.stack)
        on_cpu = TaskOnCpu(stack, known.cpu, self._stacks, is_on_cpu=known.on_cpu)
        code = KernelCode(self._space, self._symbols, self._modules)
        try:
            position = on_cpu.position(vcpus)
            if position is None:
                position = saved_position(self._space, self._symbols, task.address)
        except NotSeen as error:
            return ListWalk(gaps=[Gap(_STRUCTURE, task.address, str(error))])
        if position.frame.how is How.USER_MODE:
            return self._rows(task, [position.frame], [])
        gaps: list[Gap] = []
        words = StackWords(self._space, (stack, *self._stacks.of_cpus))
        try:
            frames = self._unwound(words, code, position, gaps)
        except WalkFailed as failure:
            gaps.append(Gap("modules", task.address, str(failure)))
            frames = [position.frame]
        return self._rows(task, frames, gaps)

    def _unwound(
        self, words: StackWords, code: KernelCode, position: Position, gaps: list[Gap]
    ) -> list[Frame]:
        """This unwinds as far as there is a way, and behind that scans for what may be of the stack."""
        found = self._by_rules(words, code, position)
        if found.problem:
            gaps.append(Gap(_STRUCTURE, Va(found.sp), found.problem))
            for index, frame in enumerate(scanned(words, found.sp, code)):
                if index == _MAX_SCANNED:
                    break
                found.frames.append(frame)
        return found.frames

    def _by_rules(self, words: StackWords, code: KernelCode, position: Position) -> Unwound:
        if self._symbols.find_field("thread_struct", ("cpu_context",)) is not None:
            va_bits = self._space.geometry.va_bits
            return FrameRecords(words, self._symbols, code, va_bits=va_bits).unwound(position)
        rows = OrcRows(self._space, self._symbols, code)
        if not rows.usable:
            why = "this kernel has no ORC tables that are understood: what follows is guessed"
            return Unwound([position.frame], why, position.sp)
        return OrcUnwinder(words, rows, code).unwound(position)

    def _rows(
        self, task: Process | Thread, frames: Sequence[Frame], gaps: list[Gap]
    ) -> ListWalk[StackFrame]:
        rows = dict(enumerate(self._named(task, frames, gaps)))
        return ListWalk(dict(rows), gaps)

    def _named(
        self, task: Process | Thread, frames: Sequence[Frame], gaps: list[Gap]
    ) -> Iterator[StackFrame]:
        for number, frame in enumerate(frames):
            name, offset, module = self._name(frame, gaps)
            yield StackFrame(
                task.pid,
                number,
                frame.pc,
                name,
                offset,
                module,
                frame.reliable,
                frame.how.value,
                frame.place,
            )

    def _name(self, frame: Frame, gaps: list[Gap]) -> tuple[str, int, str]:
        if frame.how is How.USER_MODE:
            return "", 0, ""
        # What a call returns to may be the next function already.
        at = Va(frame.pc if frame.exact else frame.pc - 1)
        try:
            found = self._nearest(at)
        except (SymbolsError, WalkFailed) as error:
            gaps.append(Gap("symbols", frame.pc, str(error)))
            return "", 0, ""
        return (
            ("", 0, "") if found is None else (found.name, frame.pc - found.address, found.module)
        )


def _task_reader(space: AddressSpace, symbols: Symbols) -> Callable[[Va], tuple[Any, ...]]:
    """This makes the reader of (stack, nvcsw, nivcsw, on_cpu, cpu) of a task."""

    def task(*names: str) -> int:
        return field_offset(symbols, "task_struct", *names)

    members = [(task("stack"), "Q"), (task("nvcsw"), "Q"), (task("nivcsw"), "Q")]
    on_cpu = symbols.find_field("task_struct", ("on_cpu",))  # not on kernels for one CPU alone
    info = symbols.find_field("thread_info", ("cpu",))
    own = symbols.find_field("task_struct", ("cpu",))  # until 5.15
    cpu = None if own is None else own.offset
    if info is not None:
        cpu = task("thread_info") + info.offset
    # One byte: an int of 0 or 1 on older kernels, with other members behind it on newer ones.
    optional = ((None if on_cpu is None else on_cpu.offset, "B"), (cpu, "I"))
    members += [(offset, form) for offset, form in optional if offset is not None]
    read = compile_reader(space, *members)

    def of(address: Va) -> tuple[Any, ...]:
        stack, nvcsw, nivcsw, *found = read(address)
        rest = iter(found)
        return stack, nvcsw, nivcsw, *(0 if at is None else next(rest) for at, _ in optional)

    return of
