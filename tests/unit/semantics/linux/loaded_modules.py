"""Loaded modules written by hand into the RAM of a test, with the symbols they keep of themselves.

References: Linux include/linux/module.h (``struct module``, ``struct mod_kallsyms``),
include/linux/export-internal.h, kernel/bpf/btf.c (``struct btf_module``); elf(5), ``Elf64_Sym``.
The offsets are of no kernel; the symbols say where everything is.
"""

import struct
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Final

from qvmi.addr import Pa, Va
from qvmi.arch.paging import X86_64_4_LEVEL
from qvmi.memory.address_space import AddressSpace, LinearRange
from tests.synthetic.ram import Ram
from tests.synthetic.symbols import KnownSymbols

__all__ = ["BASE", "BTF_HEAD", "HEAD", "LoadedModules", "ModuleSpec", "offset"]

BASE: Final = 0xFFFF_FFFF_C000_0000
SIZE: Final = 8 << 20
HEAD: Final = BASE
BTF_HEAD: Final = BASE + 0x40
FIRST: Final = BASE + 0x1000

LAYOUTS: Final = {
    "module": (
        160,
        {
            "state": 0,
            "list": 8,
            "name": 24,
            "kallsyms": 80,
            "syms": 88,
            "num_syms": 96,
            "core_layout": 104,
            "init_layout": 120,
        },
    ),
    "module_layout": (16, {"base": 0, "size": 8}),
    "mod_kallsyms": (32, {"symtab": 0, "num_symtab": 8, "strtab": 16, "typetab": 24}),
    "kernel_symbol": (12, {"value_offset": 0, "name_offset": 4}),
    "btf": (72, {"data": 0, "data_size": 8, "name": 12}),
}


def offset(type_name: str, member: str) -> int:
    """This is where a member lies, in bytes."""
    return LAYOUTS[type_name][1][member]


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
        btf_entries: addresses of what is on the list ``btf_modules``.
        layouts: where the members lie, for a test to change before anything is read.
    """

    def __init__(self, *specs: ModuleSpec, mapped: bool = True) -> None:
        self.ram = Ram(SIZE, mapped=mapped)
        self.layouts: dict[str, tuple[int, dict[str, int]]] = deepcopy(LAYOUTS)
        self.symbols = KnownSymbols(self.layouts, {"modules": HEAD, "btf_modules": BTF_HEAD})
        self.free = FIRST
        self.at: dict[str, int] = {}
        self.kallsyms: dict[str, int] = {}
        self.btf_entries: list[int] = []
        for spec in specs:
            self.add(spec)
        self.link(HEAD, [at + offset("module", "list") for at in self.at.values()])
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
        self.ram.write(module + offset("module", "name") - BASE, spec.name.encode() + b"\0")
        self.poke(module + offset("module", "kallsyms"), "QQI", kallsyms, syms, len(exported))
        for part, (start, size) in zip(("core", "init"), spec.parts, strict=True):
            self.poke(module + offset("module", f"{part}_layout"), "QI", start, size)
        self.at[spec.name] = module
        self.kallsyms[spec.name] = kallsyms

    def add_btf(self, name: str, data: bytes, *, size: int | None = None) -> int:
        """This adds the BTF of a module; it returns the address of its ``struct btf``."""
        content = self.put(data)
        btf = self.put(struct.pack("<QI56s", content, size or len(data), name.encode()))
        entry = self.put(struct.pack("<QQQQ", 0, 0, self.at.get(name, 0), btf))
        self.btf_entries.append(entry)
        self.link(BTF_HEAD, self.btf_entries)
        return btf
