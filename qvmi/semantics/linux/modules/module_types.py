"""Types of loaded modules: the BTF that each of them adds to the kernel's own.

References: Linux kernel/bpf/btf.c (``struct btf_module``, ``btf_modules``, since 5.11; the pointer
in ``struct module`` itself is cleared once the module runs), include/linux/btf.h (``struct btf``).
"""

from dataclasses import dataclass
from typing import Any, Final

from qvmi.addr import Va
from qvmi.errors import CorruptTable, MemoryFault
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap
from qvmi.semantics.linux.structures.list import Implausible, ListShape, ListWalk, walk_list
from qvmi.semantics.linux.structures.record import Reader, compile_reader
from qvmi.symbols.btf import MAX_BTF_SIZE, Btf
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["ModuleBtf", "ModuleTypes"]

_MAX_MODULES: Final = 10_000
"""A full distribution loads some hundred."""

_MAX_ALL: Final = 64 << 20
"""Bytes of the BTF of all modules; each has some 1 to 500 KiB."""

_NAME_SIZE: Final = 56
"""``MODULE_NAME_LEN`` on 64-bit kernels."""

_POINTERS: Final = (16, 24)
"""Of the module and its BTF in ``struct btf_module``, behind its list entry."""


@dataclass(frozen=True, slots=True)
class ModuleBtf:
    """This is the BTF of one module.

    Args:
        name: of the module.
        module: address of its ``struct module``.
        btf: its types; those of the kernel are its base.
    """

    name: str
    module: Va
    btf: Btf


@dataclass(frozen=True, slots=True)
class _Entry:
    """This is where the BTF of one module lies."""

    name: str
    module: Va
    data: Va
    size: int


class ModuleTypes:
    """This lists the types of the modules of one kernel.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        base: the kernel's own BTF.

    Raises:
        SymbolsError: the profile lacks what this needs, or describes no possible layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols, base: Btf) -> None:
        self._space = space
        self._base = base
        self._head = symbols.find("btf_modules")
        if self._head is None:
            return
        self._link, self._read_link = _link_reader(space, symbols)
        self._read_btf = compile_reader(
            space,
            (field_offset(symbols, "btf", "data"), "Q"),
            (field_offset(symbols, "btf", "data_size"), "I"),
            (field_offset(symbols, "btf", "name"), f"{_NAME_SIZE}s"),
        )

    def types(self) -> ListWalk[ModuleBtf]:
        """This lists the BTF of every module that has one; kernels before 5.11 keep none.

        Raises:
            WalkFailed: the list's head cannot be read.
        """
        if self._head is None:
            return ListWalk()
        shape = ListShape("btf_modules", self._link, self._read_link, self._entry, _MAX_MODULES)
        walk = walk_list(self._space, self._head, shape)
        result: ListWalk[ModuleBtf] = ListWalk(gaps=walk.gaps, retries=walk.retries)
        room = _MAX_ALL
        for at, entry in walk.rows.items():
            room -= entry.size
            if room < 0:
                result.gaps.append(Gap("btf_modules", Va(at), f"more than {_MAX_ALL >> 20} MiB"))
                break
            try:
                btf = Btf(self._space.read(entry.data, entry.size), base=self._base)
            except (CorruptTable, MemoryFault) as error:
                gap = Gap("btf_module.btf", Va(at), f"{entry.name}: {error}")
                result.gaps.append(gap)
            else:
                result.rows[at] = ModuleBtf(entry.name, entry.module, btf)
        return result

    def _entry(self, _: int, values: tuple[Any, ...]) -> _Entry:
        _, _, module, btf = values
        data, size, name = self._read_btf(btf)
        if size > MAX_BTF_SIZE:
            raise Implausible(f"BTF of {size} bytes")
        text = name.partition(b"\0")[0].decode("utf-8", "backslashreplace")
        return _Entry(text, Va(module), Va(data), size)


def _link_reader(space: AddressSpace, symbols: Symbols) -> tuple[int, Reader]:
    """This makes the reader of ``struct btf_module``, which is private to one file of the kernel."""
    link = symbols.find_field("btf_module", ("list",))
    module = symbols.find_field("btf_module", ("module",))
    btf = symbols.find_field("btf_module", ("btf",))
    at = link.offset if link else 0
    pointers = (module.offset, btf.offset) if module and btf else _POINTERS
    return at, compile_reader(space, (at, "Q"), (at + 8, "Q"), *((one, "Q") for one in pointers))
