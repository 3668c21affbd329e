"""Command line and environment of processes: what the kernel put at the top of their stack.

References: Linux fs/proc/base.c (``get_mm_cmdline``, ``get_mm_proctitle``, ``environ_read``),
include/linux/mm_types.h (``arg_start`` to ``env_end``), include/uapi/linux/binfmts.h.
"""

from collections.abc import Callable, Iterable, Iterator
from struct import Struct
from typing import Final, NamedTuple

from qvmi.addr import PAGE_SIZE, Va
from qvmi.errors import MemoryFault, WalkFailed
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import CommandLine, Gap, Process, Variable
from qvmi.semantics.linux.fs.d_path import text_of
from qvmi.semantics.linux.structures.effort import Effort, Spent
from qvmi.semantics.linux.structures.list import Implausible, ListWalk
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.semantics.linux.tasks.mm import space_of
from qvmi.semantics.linux.tasks.task import Tasks
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["CommandLines"]

_MAX_SIZE: Final = 6 << 20
"""Three quarters of ``_STK_LIM``, what exec has room for; only a liar has more."""
_MAX_TEXT: Final = 256 << 20
"""Bytes of all processes together: a hundred times what a large machine has."""
_MAX_GAPS: Final = 1000
_RETRIES: Final = 3
_POINTER: Final = Struct("<Q")


class _Bounds(NamedTuple):
    """These are the members of a ``mm_struct`` that say where the texts lie."""

    pgd: int
    arg_start: int
    arg_end: int
    env_start: int
    env_end: int


class _Run(NamedTuple):
    """This is a readable run of a text.

    Args:
        data: its bytes.
        begins: whether what comes before it is the text's beginning, or could be read.
        ends: likewise for its end.
    """

    data: bytes
    begins: bool
    ends: bool

    def strings(self) -> Iterator[bytes]:
        """These are the NUL-terminated strings that lie in it whole."""
        parts = self.data.split(b"\0")
        last = parts.pop()
        if not self.begins and parts:
            parts = parts[1:]
        elif not self.begins:
            return
        yield from parts
        if last and self.ends:
            yield last  # the last string of all need not have an end


class _Which(NamedTuple):
    """This is one of the texts that a process has.

    Args:
        structure: its name for gaps.
        strings: reads it.
    """

    structure: str
    strings: "Callable[[_Text, _Bounds], list[bytes]]"


class CommandLines:
    """This reads command lines and environments of the processes of one kernel.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        tasks: tells which processes are still there.

    Raises:
        SymbolsError: the profile lacks what this needs, or describes no possible layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols, *, tasks: Tasks) -> None:
        self._space = space
        self._tasks = tasks
        self._mm = field_offset(symbols, "task_struct", "mm")
        self._read_pointer = space.unpacker(_POINTER)
        members = (field_offset(symbols, "mm_struct", name) for name in _Bounds._fields)
        self._read_mm = compile_reader(space, *((at, "Q") for at in members))

    def of(self, processes: Iterable[Process]) -> ListWalk[CommandLine]:
        """This lists how processes were called; one that ends meanwhile is left out."""
        result: ListWalk[CommandLine] = ListWalk()
        effort = Effort(_MAX_TEXT // PAGE_SIZE)
        for process in processes:
            try:
                words = self._steady(process, _ARGUMENTS, result.gaps, effort)
            except (MemoryFault, Implausible) as error:
                if not self._tasks.is_there(process):
                    effort.retries += 1
                    continue
                words = []
                result.gaps.append(_gap(_ARGUMENTS.structure, process, process.address, str(error)))
            except Spent as spent:
                result.gaps.append(_gap(_ARGUMENTS.structure, process, process.address, str(spent)))
                break
            row = CommandLine(
                process.pid, tuple(map(text_of, words)), process.name, process.address
            )
            result.rows[process.address] = row
            if len(result.gaps) > _MAX_GAPS:
                why = "given up: so many command lines cannot be read"
                result.gaps.append(_gap(_ARGUMENTS.structure, process, process.address, why))
                break
        result.retries = effort.retries
        return result

    def environment(self, process: Process) -> ListWalk[Variable]:
        """This lists the environment that a process was given; kernel threads and zombies have none.

        Raises:
            WalkFailed: the process is gone, or its memory cannot be read at all.
        """
        self._tasks.require_there(process)
        result: ListWalk[Variable] = ListWalk()
        effort = Effort(_MAX_TEXT // PAGE_SIZE)
        try:
            strings = self._steady(process, _ENVIRONMENT, result.gaps, effort)
        except (MemoryFault, Implausible) as error:
            raise WalkFailed(
                _ENVIRONMENT.structure, f"of process {process.pid}: {error}"
            ) from error
        for number, string in enumerate(strings):
            result.rows[number] = _variable(process, string)
        result.retries = effort.retries
        return result

    def environments(self, processes: Iterable[Process]) -> ListWalk[Variable]:
        """This lists the environments of processes; one that ends meanwhile is left out."""
        result: ListWalk[Variable] = ListWalk()
        effort = Effort(_MAX_TEXT // PAGE_SIZE)
        for process in processes:
            try:
                strings = self._steady(process, _ENVIRONMENT, result.gaps, effort)
            except (MemoryFault, Implausible) as error:
                if self._tasks.is_there(process):
                    result.gaps.append(
                        _gap(_ENVIRONMENT.structure, process, process.address, str(error))
                    )
                continue
            except Spent as spent:
                result.gaps.append(
                    _gap(_ENVIRONMENT.structure, process, process.address, str(spent))
                )
                break
            for string in strings:
                result.rows[len(result.rows)] = _variable(process, string)
            if len(result.gaps) > _MAX_GAPS:
                break
        result.retries = effort.retries
        return result

    def _steady(
        self, process: Process, which: _Which, gaps: list[Gap], effort: Effort
    ) -> list[bytes]:
        """This reads strings, again where the process got other memory meanwhile, as by exec."""
        at = process.address + self._mm
        for _ in range(_RETRIES):
            mm = self._read_pointer(at)[0]
            if not mm or process.kernel_thread:
                return []
            bounds = _Bounds._make(self._read_mm(mm))
            text = _Text(space_of(self._space, Va(bounds.pgd)), effort)
            strings = which.strings(text, bounds)
            if self._read_pointer(at)[0] == mm and self._read_mm(mm) == bounds:
                gaps += (_gap(which.structure, process, *missing) for missing in text.missing)
                return strings
            effort.retries += 1
        raise Implausible("its memory is replaced all the time")


class _Text:
    """This reads texts of one process, page by page.

    Attributes:
        missing: the pages that could not be read, as (address, why).
    """

    def __init__(self, space: AddressSpace, effort: Effort) -> None:
        self._space = space
        self._effort = effort
        self.missing: list[tuple[int, str]] = []

    def strings(self, start: int, end: int) -> list[bytes]:
        """These are the strings of a range that lie whole in pages that can be read."""
        found: list[bytes] = []
        for run in self._runs(start, end):
            found += run.strings()
        return found

    def first_string(self, start: int, end: int) -> list[bytes]:
        """This is what stands before the first NUL, where it can be read."""
        data = self._page(start, end)
        return [] if data is None else [data.partition(b"\0")[0]]

    def byte(self, va: int) -> int:
        """This is one byte, 0 where it cannot be read."""
        try:
            return self._space.read(Va(va), 1)[0]
        except MemoryFault:
            return 0

    def _runs(self, start: int, end: int) -> Iterator[_Run]:
        if end in {0, start}:
            return  # exec is under way: the texts do not end anywhere yet
        if not start < end <= start + _MAX_SIZE:
            raise Implausible(f"a text from {start:#x} to {end:#x}")
        pages: list[bytes] = []
        here, begins = start, True
        while here < end:
            page = self._page(here, end)
            if page is None:
                yield _Run(b"".join(pages), begins=begins, ends=False)
                pages, begins = [], False
            else:
                pages.append(page)
            here += PAGE_SIZE - here % PAGE_SIZE
        yield _Run(b"".join(pages), begins=begins, ends=True)

    def _page(self, start: int, end: int) -> bytes | None:
        """This reads to the end of a page; None where it is not there, which is noted."""
        self._effort.spend(1)
        size = min(end - start, PAGE_SIZE - start % PAGE_SIZE)
        try:
            return self._space.read(Va(start), size)
        except MemoryFault as fault:
            if len(self.missing) < _MAX_GAPS:
                self.missing.append((start, str(fault)))
            return None


def _arguments(text: _Text, bounds: _Bounds) -> list[bytes]:
    """These are the words of a command line; a program may have put a title in their place.

    Corresponds to ``get_mm_cmdline``: where the last byte is no NUL any more, what counts is one
    string, which may go on where the environment was.
    """
    start, end = bounds.arg_start, bounds.arg_end
    if start < end <= start + _MAX_SIZE and text.byte(end - 1):
        goes_on = bounds.env_start == end <= bounds.env_end
        return text.first_string(start, bounds.env_end if goes_on else end)
    return text.strings(start, end)


def _variables(text: _Text, bounds: _Bounds) -> list[bytes]:
    return text.strings(bounds.env_start, bounds.env_end)


_ARGUMENTS: Final = _Which("mm_struct.arg_start", _arguments)
_ENVIRONMENT: Final = _Which("mm_struct.env_start", _variables)


def _variable(process: Process, string: bytes) -> Variable:
    name, equals, value = string.partition(b"=")
    return Variable(process.pid, text_of(name), text_of(value) if equals else None)


def _gap(structure: str, process: Process, address: int, why: str) -> Gap:
    return Gap(structure, Va(address), f"process {process.pid}: {why}")
