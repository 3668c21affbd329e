"""Symbols of loaded modules, which each module keeps of itself.

References: Linux include/linux/module.h (``struct mod_kallsyms``), kernel/module/kallsyms.c
(``module_get_kallsym``, ``find_kallsyms_symbol``), kernel/kallsyms.c (``s_show``),
include/linux/module_symbol.h; elf(5), ``Elf64_Sym``.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from struct import Struct
from typing import Final

import msgspec

from qvmi.addr import Va
from qvmi.errors import MemoryFault, WalkFailed
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap, Module
from qvmi.semantics.linux.modules.module import Modules
from qvmi.semantics.linux.modules.module_exports import ModuleExports
from qvmi.semantics.linux.modules.module_memory import ModuleMemory
from qvmi.semantics.linux.structures.list import Implausible, ListWalk
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.symbols.layout import NearestSymbol, Symbols, field_offset

__all__ = ["ModuleSymbol", "ModuleSymbols"]

_MAX_SYMBOLS: Final = 1 << 17
"""Of one module; the largest drivers have some 40,000."""

_MAX_ALL_SYMBOLS: Final = 1 << 20
"""Looked at in one listing; a full distribution's modules have some 200,000."""

_MAX_NAME: Final = 512
"""``KSYM_NAME_LEN``, NUL included."""

_MAX_NAMES: Final = 16 << 20
"""Bytes of all names of a module; the largest have some 1 MiB."""

_LOOKS: Final = 3
"""What is wrong in so many looks in a row is the guest's own doing, not a moment of change."""

_ELF_SYMBOL: Final = Struct("<IBBHQQ")


class ModuleSymbol(msgspec.Struct, frozen=True, gc=False):
    r"""This is one symbol of a module, as a line of ``/proc/kallsyms`` shows it.

    Args:
        address: of its first byte.
        type: the letter that ``nm`` shows; a capital where the module exports the symbol.
        name: bytes that are no ASCII written as ``\xNN``.
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
        strtab: address of their names.
        typetab: address of a letter for each of them; 0 where ``st_info`` is the letter.
    """

    symtab: Va
    count: int
    strtab: Va
    typetab: Va


@dataclass(slots=True)
class _Look:
    """This is what looking at one module gave.

    Args:
        rows: its symbols by the address of their entries.
        looked_at: entries, those of failed attempts included.
        problem: why there are no rows; empty where all is well.
        attempts: that failed.
    """

    rows: dict[int, ModuleSymbol] = field(default_factory=dict)
    looked_at: int = 0
    problem: str = ""
    attempts: int = 0

    def count(self, entries: int, room: int) -> None:
        """This counts entries before they are looked at.

        Raises:
            Implausible: there is no room for so many.
        """
        if entries > min(_MAX_SYMBOLS, room - self.looked_at):
            raise Implausible(f"{entries} symbols are too many")
        self.looked_at += entries

    def fail(self, problem: str) -> None:
        """This counts an attempt that failed."""
        self.problem = problem
        self.attempts += 1


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
        self._exports = ModuleExports(space, symbols)
        self._kallsyms_offset = field_offset(symbols, "module", "kallsyms")
        self._read_pointer = space.unpacker(Struct("<Q"))
        typetab = symbols.find_field("mod_kallsyms", ("typetab",))  # since 5.2
        self._read_kallsyms = compile_reader(
            space,
            (field_offset(symbols, "mod_kallsyms", "symtab"), "Q"),
            (field_offset(symbols, "mod_kallsyms", "num_symtab"), "I"),
            (field_offset(symbols, "mod_kallsyms", "strtab"), "Q"),
            *([(typetab.offset, "Q")] if typetab else []),
        )

    def symbols(self) -> ListWalk[ModuleSymbol]:
        """This lists the symbols of all modules, in the order of ``/proc/kallsyms``.

        Raises:
            WalkFailed: the list of modules cannot be walked at all.
        """
        walk = self._modules.modules()
        result: ListWalk[ModuleSymbol] = ListWalk(gaps=walk.gaps, retries=walk.retries)
        return self._collect(walk.rows.values(), result)

    def symbols_of(self, module: Module) -> ListWalk[ModuleSymbol]:
        """This lists the symbols of one module; one that is gone meanwhile has none."""
        return self._collect([module], ListWalk())

    def nearest(self, va: Va) -> NearestSymbol | None:
        """This is the symbol at or before an address, in the part of a module that it lies in.

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
        """This is the first of the symbols at the last address up to another one."""
        rows = self.symbols_of(module).rows.values()
        candidates = [one for one in rows if start <= one.address <= va and not _marks(one.name)]
        found = max(candidates, key=lambda one: one.address, default=None)
        if found is None:
            return None
        return NearestSymbol(found.name, found.address, found.type, found.module)

    def _collect(
        self, modules: Iterable[Module], result: ListWalk[ModuleSymbol]
    ) -> ListWalk[ModuleSymbol]:
        """This adds the symbols of some modules, or gaps for those that are there but unreadable."""
        problems: dict[Va, str] = {}
        room = _MAX_ALL_SYMBOLS
        for module in modules:
            look = self._look_at(module, room)
            result.rows.update(look.rows)
            result.retries += look.attempts
            room -= look.looked_at
            if look.problem:
                problems[module.struct_address] = f"{module.name}: {look.problem}"
        if problems:
            loaded = self._loaded()
            for at, problem in problems.items():
                if loaded is None or at in loaded:
                    result.gaps.append(Gap("module.kallsyms", at, problem))
        return result

    def _look_at(self, module: Module, room: int) -> _Look:
        """This reads the symbols of one module, again where it changes meanwhile."""
        look = _Look()
        while look.attempts < _LOOKS:
            try:
                tables = self._tables(module.struct_address)
                look.count(tables.count, room)
                rows = dict(self._rows(module, tables))
                is_steady = tables == self._tables(module.struct_address)
            except (MemoryFault, Implausible) as error:
                look.fail(str(error))
                continue
            if is_steady:
                look.rows, look.problem = rows, ""
                break
            look.fail("its tables change all the time")
        return look

    def _loaded(self) -> set[Va] | None:
        """These are the modules that the kernel lists now; None where that cannot be seen."""
        try:
            return {row.struct_address for row in self._modules.modules().rows.values()}
        except WalkFailed:
            return None

    def _tables(self, module: Va) -> _Tables:
        kallsyms = self._read_pointer(module + self._kallsyms_offset)[0]
        if not kallsyms:
            return _Tables(Va(0), 0, Va(0), Va(0))
        symtab, count, strtab, *typetab = self._read_kallsyms(kallsyms)
        return _Tables(Va(symtab), count, Va(strtab), Va(typetab[0] if typetab else 0))

    def _rows(self, module: Module, tables: _Tables) -> Iterator[tuple[int, ModuleSymbol]]:
        """This iterates the symbols that have a name, with the addresses of their entries."""
        raw = self._space.read(tables.symtab, _ELF_SYMBOL.size * tables.count)
        entries = list(_ELF_SYMBOL.iter_unpack(raw))
        names = _read_names(self._space, tables.strtab, [entry[0] for entry in entries])
        letters = bytes(entry[1] for entry in entries)
        if tables.typetab:
            letters = self._space.read(tables.typetab, tables.count)
        exported = self._exports.of(module.struct_address)
        for index, (entry, name) in enumerate(zip(entries, names, strict=True)):
            if name:
                address = Va(entry[4])
                letter = chr(letters[index]).lower()
                if exported.exports(address, name):
                    letter = letter.upper()
                text = name.decode("ascii", "backslashreplace")
                row = ModuleSymbol(address, letter, text, module.name)
                yield tables.symtab + _ELF_SYMBOL.size * index, row


def _marks(name: str) -> bool:
    """This tells whether a name is an assembler's, such as ``$x``. Corresponds to ``is_mapping_symbol``."""
    return name.startswith("$")


def _read_names(space: AddressSpace, strtab: Va, offsets: Sequence[int]) -> list[bytes]:
    """This reads the names at some offsets all at once.

    Raises:
        Implausible: they are too long, or too many.
    """
    if not offsets:
        return []
    last = max(offsets)
    if last > _MAX_NAMES:
        raise Implausible(f"a name at {last} of the names")
    names = space.read(strtab, last) + space.read_string(Va(strtab + last), _MAX_NAME) + b"\0"
    found = []
    for offset in offsets:
        end = names.find(0, offset, offset + _MAX_NAME)
        if end < 0:
            raise Implausible(f"the name at {offset} has no end")
        found.append(names[offset:end])
    return found
