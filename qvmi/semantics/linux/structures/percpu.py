"""Variables that each CPU has for itself: where each copy lies, and what it holds.

References: Linux include/linux/percpu-defs.h (``per_cpu_ptr``), mm/percpu.c (``__per_cpu_offset``),
include/linux/cpumask.h (``cpu_possible_mask``). Until 6.14 the addresses of x86-64's begin at 0
(9d7de2aa8b41), later and on arm64 within the image: the offset of a CPU is added to either.
"""

from collections.abc import Callable, Iterable
from functools import partial
from struct import Struct
from typing import Final, NamedTuple

from qvmi.addr import Va
from qvmi.errors import CorruptTable, MemoryFault, SymbolsError, UsageError, WalkFailed
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap
from qvmi.semantics.linux.structures.list import ListWalk
from qvmi.semantics.rows.percpu import PerCpuValue
from qvmi.symbols.btf_names import variable_type
from qvmi.symbols.btf_values import BtfValues, Value
from qvmi.symbols.isf_file import IsfSymbols
from qvmi.symbols.layout import Symbols, address
from qvmi.symbols.live import LiveSymbols

__all__ = ["PerCpu"]

_MAX_CPUS: Final = 8192
"""The largest ``NR_CPUS`` there is."""
_MAX_SIZE: Final = 1 << 16
"""Bytes of one variable; the largest, stacks for exceptions, have 20 KiB."""
_ADDRESSES: Final = 1 << 64
_POINTER: Final = Struct("<Q")
_NUMBER: Final = Struct("<I")
_MASK: Final = "__cpu_possible_mask"


class PerCpu:
    """This finds the copies of variables.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.

    Raises:
        SymbolsError: the profile lacks what this needs.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols) -> None:
        self._space = space
        self._symbols = symbols
        self._start = address(symbols, "__per_cpu_start")
        self._end = address(symbols, "__per_cpu_end")
        self._offsets = symbols.find("__per_cpu_offset")
        self._read_offset = space.unpacker(_POINTER)
        self._read_number = space.unpacker(_NUMBER)

    def cpus(self) -> tuple[int, ...]:
        """These are the CPUs that there may be, by their numbers: each has its copies.

        Raises:
            WalkFailed: they cannot be told.
        """
        count = self._symbols.find("nr_cpu_ids")
        if self._offsets is None or count is None:
            return (0,)  # a kernel for a single CPU
        try:
            number = self._read_number(count)[0]
            if not 0 < number <= _MAX_CPUS:
                raise WalkFailed(_MASK, f"{number} CPUs")
            data = self._space.read(address(self._symbols, _MASK), (number + 7) // 8)
        except MemoryFault as fault:
            raise WalkFailed(_MASK, str(fault)) from fault
        mask = int.from_bytes(data, "little")
        return tuple(cpu for cpu in range(number) if mask >> cpu & 1)

    def address(self, name: str, cpu: int) -> Va:
        """This is where a CPU's copy of a variable lies.

        Args:
            name: of the variable, one of the kernel itself.
            cpu: its number.

        Raises:
            SymbolsError: there is no such variable, or it is none that each CPU has.
            UsageError: there is no such CPU.
            WalkFailed, MemoryFault: that cannot be read.
        """
        self._require_there(cpu, self.cpus())
        return self._on(self._variable(name), cpu)

    def copies(self, name: str) -> tuple[Va, ...]:
        """These are where all CPUs' copies of a variable lie.

        Raises:
            SymbolsError: there is no such variable, or it is none that each CPU has.
            WalkFailed, MemoryFault: that cannot be read.
        """
        variable = self._variable(name)
        return tuple(self._on(variable, cpu) for cpu in self.cpus())

    def values(self, name: str, cpu: int | None = None) -> ListWalk[PerCpuValue]:
        """This lists what the copies of a variable hold; one that cannot be read is a gap.

        Args:
            name: of the variable, one of the kernel itself.
            cpu: whose copy; None for those of all.

        Raises:
            SymbolsError: there is no such variable, or it is none that each CPU has.
            UsageError: there is no such CPU.
            WalkFailed: the CPUs cannot be told.
        """
        variable, cpus = self._variable(name), self.cpus()
        if cpu is not None:
            self._require_there(cpu, cpus)
            cpus = (cpu,)
        look = self._look(name, variable)
        result: ListWalk[PerCpuValue] = ListWalk()
        for one in cpus:
            try:
                at = self._on(variable, one)
                value = look.value(self._space.read(at, look.size))
            except MemoryFault as fault:
                result.gaps.append(Gap(f"{name} of CPU {one}", Va(variable), str(fault)))
            else:
                result.rows[one] = PerCpuValue(one, at, look.type, look.size, value)
        return result

    def _look(self, name: str, variable: Va) -> "_Look":
        """This is how the copies of a variable are read: by their type, or as bytes."""
        btf = self._symbols.btf if isinstance(self._symbols, LiveSymbols) else None
        type_id = None if btf is None else variable_type(btf, name)
        if btf is None or type_id is None:
            return _Look("", self._room(variable), bytes.hex)
        values = BtfValues(btf)
        size = values.size(type_id)
        if size > _MAX_SIZE:
            raise CorruptTable("BTF", f"{name} has {size} bytes")
        return _Look(values.name(type_id), size, partial(values.value, type_id))

    def _variable(self, name: str) -> Va:
        found = address(self._symbols, name)
        if not self._start <= found < self._end:
            raise SymbolsError(f"{name} is one variable for all CPUs")
        return found

    def _on(self, variable: Va, cpu: int) -> Va:
        if self._offsets is None:
            return variable
        offset = self._read_offset(self._offsets + cpu * _POINTER.size)[0]
        return Va((variable + offset) % _ADDRESSES)

    def _room(self, variable: Va) -> int:
        """This is how many bytes there are up to the next variable."""
        behind = (at for at in self._every_address() if variable < at < self._end)
        return min(min(behind, default=self._end) - variable, _MAX_SIZE)

    def _every_address(self) -> Iterable[int]:
        symbols = self._symbols
        if isinstance(symbols, LiveSymbols):
            return map(symbols.kallsyms.address_at, range(len(symbols.kallsyms)))
        if isinstance(symbols, IsfSymbols):
            return (at for _, at in symbols.addresses())
        return ()

    def _require_there(self, cpu: int, cpus: tuple[int, ...]) -> None:
        if cpu not in cpus:
            known = ", ".join(map(str, cpus))
            raise UsageError(f"there is no CPU {cpu}: the guest may have {known}")


class _Look(NamedTuple):
    """This is how a variable is read.

    Args:
        type: as C writes it; empty for bytes.
        size: of it.
        value: makes what is shown of its bytes.
    """

    type: str
    size: int
    value: Callable[[bytes], Value]
