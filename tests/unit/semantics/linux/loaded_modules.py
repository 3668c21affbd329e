"""Loaded modules written by hand into the RAM of a test, with the symbols they keep of themselves.

References: Linux include/linux/module.h (``struct module``, ``struct mod_kallsyms``),
include/linux/export-internal.h, kernel/bpf/btf.c (``struct btf_module``); elf(5), ``Elf64_Sym``.
The offsets are of no kernel; the symbols say where everything is.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from qvmi.addr import Pa, Va
from qvmi.arch.paging import X86_64_4_LEVEL
from qvmi.memory.address_space import AddressSpace, LinearRange
from qvmi.symbols.layout import Field, NearestSymbol
from tests.synthetic.ram import Ram

__all__ = ["LoadedModules", "ModuleSpec", "TableSymbols"]

BASE: Final = 0xFFFF_FFFF_C000_0000
SIZE: Final = 8 << 20
HEAD: Final = BASE
BTF_HEAD: Final = BASE + 0x40
FIRST: Final = BASE + 0x1000

FIELDS: Final = {
    "module.state": 0, "module.list": 8, "module.name": 24, "module.kallsyms": 80,
    "module.syms": 88, "module.num_syms": 96, "module.core_layout": 104,
    "module.init_layout": 120, "module_layout.base": 0, "module_layout.size": 8,
    "mod_kallsyms.symtab": 0, "mod_kallsyms.num_symtab": 8, "mod_kallsyms.strtab": 16,
    "mod_kallsyms.typetab": 24, "kernel_symbol.value_offset": 0, "kernel_symbol.name_offset": 4,
    "btf.data": 0, "btf.data_size": 8, "btf.name": 12,
}  # fmt: skip
SIZES: Final = {"kernel_symbol": 12, "module_layout": 16}


@dataclass
class TableSymbols:
    """These are symbols and layouts out of tables that a test may change."""

    addresses: dict[str, int] = field(
        default_factory=lambda: {"modules": HEAD, "btf_modules": BTF_HEAD}
    )
    fields: dict[str, int] = field(default_factory=lambda: dict(FIELDS))
    sizes: dict[str, int] = field(default_factory=lambda: dict(SIZES))

    def find(self, name: str) -> Va | None:
        return Va(self.addresses[name]) if name in self.addresses else None

    def find_field(self, type_name: str, names: Sequence[str]) -> Field | None:
        for name in names:
            if f"{type_name}.{name}" in self.fields:
                return Field(name, self.fields[f"{type_name}.{name}"])
        return None

    def size_of(self, type_name: str) -> int | None:
        return self.sizes.get(type_name)

    def nearest(self, va: Va) -> NearestSymbol | None:  # noqa: ARG002 - as the protocol has it
        return None


@dataclass
class ModuleSpec:
    """This is a module to be.

    Attributes:
        symbols: (name, address, letter, whether it is exported).
        parts: (start, size) of its text, and of what is only there while it starts.
    """

    name: str
    symbols: Sequence[tuple[str, int, str, bool]] = ()
    parts: Sequence[tuple[int, int]] = ((0, 0), (0, 0))


class LoadedModules:
    """This is a kernel's memory with modules in it.

    Attributes:
        at: address of each module's ``struct module``.
        kallsyms: address of each module's ``struct mod_kallsyms``.
    """

    def __init__(self, *specs: ModuleSpec, mapped: bool = True) -> None:
        self.ram = Ram(SIZE, mapped=mapped)
        self.symbols = TableSymbols()
        self.free = FIRST
        self.at: dict[str, int] = {}
        self.kallsyms: dict[str, int] = {}
        for spec in specs:
            self.add(spec)
        self.link(HEAD, [at + FIELDS["module.list"] for at in self.at.values()])
        self.link(BTF_HEAD, [])

    def space(self) -> AddressSpace:
        run = LinearRange(Va(BASE), Va(BASE + SIZE), Pa(0))
        return AddressSpace(self.ram, Pa(0), geometry=X86_64_4_LEVEL, linear=[run])

    def put(self, data: bytes) -> int:
        """This writes data somewhere, and returns where."""
        at = self.free
        self.ram.write(at - BASE, data)
        self.free = (at + len(data) + 15) & ~15
        return at

    def poke(self, at: int, form: str, *values: int) -> None:
        self.ram.write(at - BASE, struct.pack("<" + form, *values))

    def link(self, head: int, entries: Sequence[int]) -> None:
        """This makes a list of its entries, as list_add_tail would."""
        ring = [head, *entries]
        for before, here, after in zip(ring[-1:] + ring, ring, [*ring[1:], head], strict=False):
            self.poke(here, "QQ", after, before)

    def add(self, spec: ModuleSpec) -> None:
        names = b"\0" + b"".join(name.encode("latin-1") + b"\0" for name, *_ in spec.symbols)
        strtab = self.put(names)
        starts = [names.index(b"\0" + one[0].encode("latin-1") + b"\0") + 1 for one in spec.symbols]
        entries = [bytes(24)] + [
            struct.pack("<IBBHQQ", start, ord(letter), 0, 1, address, 0)
            for start, (_, address, letter, _) in zip(starts, spec.symbols, strict=True)
        ]
        symtab = self.put(b"".join(entries))
        typetab = self.put(b"?" + "".join(one[2] for one in spec.symbols).encode())
        kallsyms = self.put(struct.pack("<QQQQ", symtab, len(entries), strtab, typetab))
        exported = [
            (one[1], strtab + start)
            for start, one in zip(starts, spec.symbols, strict=True)
            if one[3]
        ]
        syms = self.free
        self.put(
            b"".join(
                struct.pack("<iii", value - (syms + 12 * n), name - (syms + 12 * n + 4), 0)
                for n, (value, name) in enumerate(exported)
            )
        )
        module = self.put(bytes(160))
        self.ram.write(module + FIELDS["module.name"] - BASE, spec.name.encode() + b"\0")
        self.poke(module + FIELDS["module.kallsyms"], "QQI", kallsyms, syms, len(exported))
        for part, (start, size) in zip(("core", "init"), spec.parts, strict=True):
            self.poke(module + FIELDS[f"module.{part}_layout"], "QI", start, size)
        self.at[spec.name] = module
        self.kallsyms[spec.name] = kallsyms

    def add_btf(self, name: str, data: bytes, *, size: int | None = None) -> int:
        """This adds the BTF of a module; it returns the address of its ``struct btf``."""
        content = self.put(data)
        btf = self.put(struct.pack("<QI56s", content, size or len(data), name.encode()))
        entry = self.put(struct.pack("<QQQQ", 0, 0, self.at.get(name, 0), btf))
        self.btf_entries = [*getattr(self, "btf_entries", []), entry]
        self.link(BTF_HEAD, self.btf_entries)
        return btf
