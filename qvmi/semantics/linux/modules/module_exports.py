"""Symbols that a loaded module exports to others.

References: Linux include/linux/export.h, export-internal.h (``struct kernel_symbol``; its offsets
are from where they stand), kernel/module/kallsyms.c (``is_exported``: those that are exported to
modules of a GPL-compatible licence only are not asked, where the kernel keeps them apart).
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from struct import Struct
from typing import Final

from qvmi.addr import Va
from qvmi.errors import LayoutNotFound
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.structures.list import Implausible
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.symbols.layout import Symbols, field, field_offset

__all__ = ["ExportTable", "ModuleExports"]

_MAX_EXPORTS: Final = 1 << 16
"""Of one module; the largest libraries of drivers have some 1,000."""

_MAX_NAME: Final = 512
"""``KSYM_NAME_LEN``, NUL included."""

_ADDRESS_MASK: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class ExportTable:
    """These are the exports of one module, whose names are read when they matter.

    Args:
        space: the kernel's address space.
        names: addresses of the names by the exported address.
    """

    space: AddressSpace
    names: Mapping[int, list[Va]]

    def exports(self, address: Va, name: bytes) -> bool:
        """This tells whether an address is exported by a name.

        Raises:
            MemoryFault: a name cannot be read.
        """
        where = self.names.get(address, ())
        return any(self.space.read_string(at, _MAX_NAME) == name for at in where)


class ModuleExports:
    """This reads what the modules of one kernel export.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.

    Raises:
        SymbolsError: the profile lacks what this needs, or describes no possible layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols) -> None:
        self._space = space
        self._read_module = compile_reader(
            space,
            (field_offset(symbols, "module", "syms"), "Q"),
            (field_offset(symbols, "module", "num_syms"), "I"),
        )
        self._value = field(symbols, "kernel_symbol", "value_offset", "value").offset
        name = field(symbols, "kernel_symbol", "name_offset", "name")
        self._name = name.offset
        self._relative = name.name == "name_offset"
        self._number = Struct("<i" if self._relative else "<Q")
        self._size = symbols.size_of("kernel_symbol") or 0
        if max(self._value, self._name) + self._number.size > self._size:
            raise LayoutNotFound("kernel_symbol")

    def of(self, module: Va) -> ExportTable:
        """These are the exports of one module.

        Raises:
            MemoryFault: they cannot be read.
            Implausible: they are too many.
        """
        start, count = self._read_module(module)
        if count > _MAX_EXPORTS:
            raise Implausible(f"{count} exported symbols")
        raw = self._space.read(Va(start), self._size * count)
        names: defaultdict[int, list[Va]] = defaultdict(list)
        for at in range(0, len(raw), self._size):
            address = self._pointer(raw, at + self._value, start)
            names[address].append(self._pointer(raw, at + self._name, start))
        return ExportTable(self._space, names)

    def _pointer(self, raw: bytes, at: int, start: int) -> Va:
        """This is a pointer at an offset of the entries, which may be given from where it stands."""
        number: int = self._number.unpack_from(raw, at)[0]
        return Va((start + at + number) & _ADDRESS_MASK if self._relative else number)
