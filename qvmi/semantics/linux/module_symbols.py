"""Symbols of loaded modules, which each module keeps of itself.

References: Linux include/linux/module.h (``struct mod_kallsyms``), kernel/module/kallsyms.c
(``module_get_kallsym``, ``is_exported``, ``find_kallsyms_symbol``), kernel/kallsyms.c (``s_show``),
include/linux/export.h (``struct kernel_symbol``); elf(5), ``Elf64_Sym``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from struct import Struct
from typing import Final

import msgspec

from qvmi.addr import Va
from qvmi.errors import MemoryFault, SymbolsError
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap, Module
from qvmi.semantics.linux.list import Implausible, ListWalk
from qvmi.semantics.linux.module import Modules
from qvmi.semantics.linux.module_memory import ModuleMemory
from qvmi.semantics.linux.record import compile_reader
from qvmi.symbols.layout import NearestSymbol, Symbols, field, field_offset

__all__ = ["ModuleSymbol", "ModuleSymbols"]

_MAX_SYMBOLS: Final = 1 << 18
"""Symbols of one module; the largest graphics drivers have some 40,000."""

_MAX_NAME: Final = 512
"""``KSYM_NAME_LEN``, NUL included."""

_MAX_NAMES: Final = 16 << 20
"""Bytes of all names of a module; the largest have some 1 MiB."""

_MAX_EXPORTS: Final = 1 << 16
_LOOKS: Final = 3
"""What is wrong in so many looks in a row is the guest's own doing, not a moment of change."""

_ELF_SYMBOL: Final = Struct("<IBBHQQ")
_SHN_UNDEF: Final = 0
_ADDRESS_MASK: Final = (1 << 64) - 1
_STRUCTURE: Final = "module.kallsyms"


class ModuleSymbol(msgspec.Struct, frozen=True, gc=False):
    """This is one symbol of a module, as a line of ``/proc/kallsyms`` shows it.

    Args:
        address: of its first byte.
        type: the letter that ``nm`` shows; a capital where the module exports the symbol.
        name: bytes that are no ASCII written as ``\\xNN``.
        module: that defines it.
    """

    address: Va
    type: str
    name: str
    module: str


@dataclass(frozen=True, slots=True)
class _Tables:
    """These are the tables of one module, at one moment.

    Args:
        symtab: address of its ``Elf64_Sym`` entries.
        count: of these.
        strtab: address of the names.
        typetab: address of a letter for each symbol; 0 where ``st_info`` is the letter.
        exports: address of its ``kernel_symbol`` entries.
        export_count: of these.
    """

    symtab: Va
    count: int
    strtab: Va
    typetab: Va
    exports: Va
    export_count: int

    def __post_init__(self) -> None:
        if self.count > _MAX_SYMBOLS or self.export_count > _MAX_EXPORTS:
            raise Implausible(f"{self.count} symbols, {self.export_count} of them exported")


class ModuleSymbols:
    """This lists the symbols of the modules of one kernel.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        modules: lists the modules.

    Raises:
        SymbolsError: the profile lacks what this needs, or describes no possible layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols, modules: Modules) -> None:
        self._space = space
        self._modules = modules
        self._memory = ModuleMemory(space, symbols)
        self._exports = _Exports(space, symbols)
        self._read_module = compile_reader(
            space,
            (field_offset(symbols, "module", "kallsyms"), "Q"),
            (field_offset(symbols, "module", "syms"), "Q"),
            (field_offset(symbols, "module", "num_syms"), "I"),
        )
        typetab = symbols.find_field("mod_kallsyms", ("typetab",))  # since 5.2
        symtab = field_offset(symbols, "mod_kallsyms", "symtab")
        self._has_types = typetab is not None
        self._read_kallsyms = compile_reader(
            space,
            (symtab, "Q"),
            (field_offset(symbols, "mod_kallsyms", "num_symtab"), "I"),
            (field_offset(symbols, "mod_kallsyms", "strtab"), "Q"),
            *([(typetab.offset, "Q")] if typetab else []),
        )

    def symbols(self) -> ListWalk[ModuleSymbol]:
        """This lists the symbols of all modules in the order of ``/proc/kallsyms``.

        Raises:
            WalkFailed: the list of modules cannot be walked at all.
        """
        walk = self._modules.modules()
        result: ListWalk[ModuleSymbol] = ListWalk(gaps=walk.gaps, retries=walk.retries)
        for module in walk.rows.values():
            found = self.symbols_of(module)
            result.rows.update(found.rows)
            result.gaps.extend(found.gaps)
            result.retries += found.retries
        return result

    def symbols_of(self, module: Module) -> ListWalk[ModuleSymbol]:
        """This lists the symbols of one module, by the address of their ``Elf64_Sym``.

        A module that is gone meanwhile has none.
        """
        result: ListWalk[ModuleSymbol] = ListWalk()
        why = ""
        for _ in range(_LOOKS):
            try:
                tables = self._tables(module.struct_address)
                rows = dict(self._rows(module.name, tables))
                if tables == self._tables(module.struct_address):
                    result.rows.update(rows)
                    return result
                why = "its tables change all the time"
            except (MemoryFault, Implausible) as error:
                why = str(error)
            result.retries += 1
            if not self._is_loaded(module):
                return result
        result.gaps.append(Gap(_STRUCTURE, module.struct_address, f"{module.name}: {why}"))
        return result

    def nearest(self, va: Va) -> NearestSymbol | None:
        """This is the symbol at or before an address in the same part of a module.

        Raises:
            WalkFailed: the list of modules cannot be walked at all.
        """
        for module in self._modules.modules().rows.values():
            try:
                parts = self._memory.parts(module.struct_address)
            except MemoryFault:
                continue
            for part in parts:
                if part.start <= va < part.end:
                    return self._last_up_to(va, part.start, module)
        return None

    def _last_up_to(self, va: Va, start: Va, module: Module) -> NearestSymbol | None:
        candidates = (
            one for one in self.symbols_of(module).rows.values() if start <= one.address <= va
        )
        found = max(candidates, key=lambda one: one.address, default=None)
        return found and NearestSymbol(found.name, found.address, found.type, found.module)

    def _is_loaded(self, module: Module) -> bool:
        """This tells whether the kernel still lists a module."""
        try:
            rows = self._modules.modules().rows
        except (MemoryFault, SymbolsError):
            return True
        return module.struct_address in {row.struct_address for row in rows.values()}

    def _tables(self, module: Va) -> _Tables:
        kallsyms, exports, export_count = self._read_module(module)
        if not kallsyms:
            return _Tables(Va(0), 0, Va(0), Va(0), Va(exports), 0)
        symtab, count, strtab, *types = self._read_kallsyms(kallsyms)
        typetab = types[0] if types else 0
        return _Tables(Va(symtab), count, Va(strtab), Va(typetab), Va(exports), export_count)

    def _rows(self, module: str, tables: _Tables) -> Iterator[tuple[int, ModuleSymbol]]:
        """This iterates the symbols that have a name, with the addresses of their entries."""
        read, count = self._space.read, tables.count
        entries = read(tables.symtab, _ELF_SYMBOL.size * count)
        symbols = list(_ELF_SYMBOL.iter_unpack(entries))
        names = _Names(self._space, tables.strtab, [symbol[0] for symbol in symbols])
        letters = (
            read(tables.typetab, count) if self._has_types else bytes(one[1] for one in symbols)
        )
        exports = self._exports.names(tables.exports, tables.export_count)
        for index, (name_at, _, _, _, address, _) in enumerate(symbols):
            name = names.at(name_at)
            if name:
                letter = chr(letters[index]).lower()
                exported = name in exports.get(address, ())
                row = ModuleSymbol(
                    Va(address),
                    letter.upper() if exported else letter,
                    name.decode("ascii", "backslashreplace"),
                    module,
                )
                yield tables.symtab + _ELF_SYMBOL.size * index, row
