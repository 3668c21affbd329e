"""Loaded kernel modules: ``struct module`` and the list of them.

References: Linux include/linux/module.h and kernel/module/procfs.c (``m_show``); ``core_layout``
became ``mem[]`` in 6.4 by ac3b43283923.
"""

from collections.abc import Callable
from typing import Any, Final

from qvmi.addr import Va
from qvmi.errors import LayoutNotFound
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Module
from qvmi.semantics.linux.structures.list import Implausible, ListShape, ListWalk, walk_list
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.symbols.layout import Symbols, address, field_offset

__all__ = ["Modules"]

_NAME_SIZE: Final = 56
"""``MODULE_NAME_LEN`` on 64-bit kernels."""
_STATES: Final = ("live", "coming", "going")
_MEMORY_KINDS: Final = 7
"""``MOD_MEM_NUM_TYPES``: text, data, rodata, ro_after_init and three for init."""
_MAX_MODULES: Final = 10_000
"""A full distribution loads some hundred; the address space for modules holds 1.5 GiB."""
_MAX_MODULE_SIZE: Final = 1 << 31


class Modules:
    """This lists the modules of one kernel.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.

    Raises:
        SymbolsError: the profile lacks what the list needs, or describes no possible layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols) -> None:
        self._space = space
        self._head = address(symbols, "modules")
        self._list = field_offset(symbols, "module", "list")
        self._read = compile_reader(
            space,
            (self._list, "Q"),
            (self._list + 8, "Q"),
            (field_offset(symbols, "module", "state"), "I"),
            (field_offset(symbols, "module", "name"), f"{_NAME_SIZE}s"),
        )
        self._read_memory = _memory_reader(space, symbols)

    def modules(self) -> ListWalk[Module]:
        """This walks ``modules``, leaving out what is not formed yet, as ``/proc/modules`` does.

        Raises:
            WalkFailed: the list's head cannot be read.
        """
        shape = ListShape("module.list", self._list, self._read, self._row, _MAX_MODULES)
        walk = walk_list(self._space, self._head, shape)
        formed = {where: row for where, row in walk.rows.items() if row is not None}
        return ListWalk(formed, walk.gaps, walk.retries)

    def _row(self, module: Va, values: tuple[Any, ...]) -> Module | None:
        _, _, state, name = values
        text, end, _ = name.partition(b"\0")
        if state == len(_STATES):
            return None
        if state > len(_STATES) or not end or not text:
            raise Implausible(f"module state {state}, name {name[:16]!r}")
        start, size = self._read_memory(module)
        if size > _MAX_MODULE_SIZE:
            raise Implausible(f"module of {size} bytes")
        decoded = text.decode("utf-8", "backslashreplace")
        return Module(decoded, Va(start), size, _STATES[state], module)


def _memory_reader(space: AddressSpace, symbols: Symbols) -> Callable[[int], tuple[int, int]]:
    """This makes the reader of (start of text, bytes in all) for the layout this kernel has."""
    parts = symbols.find_field("module", ("mem", "core_layout"))
    if parts is not None and parts.name == "mem":
        return _mem_array_reader(space, symbols, parts.offset)
    core = field_offset(symbols, "module", "core_layout")
    init = field_offset(symbols, "module", "init_layout")
    base = field_offset(symbols, "module_layout", "base")
    size = field_offset(symbols, "module_layout", "size")
    read = compile_reader(space, (core + base, "Q"), (core + size, "I"), (init + size, "I"))

    def start_and_size(module: int) -> tuple[int, int]:
        start, core_size, init_size = read(module)
        return start, core_size + init_size

    return start_and_size


def _mem_array_reader(
    space: AddressSpace, symbols: Symbols, mem: int
) -> Callable[[int], tuple[int, int]]:
    """This reads ``module.mem[]``; its first element, MOD_TEXT, is where the module starts."""
    base = field_offset(symbols, "module_memory", "base")
    size = field_offset(symbols, "module_memory", "size")
    stride = symbols.size_of("module_memory")
    if stride is None:
        raise LayoutNotFound("module_memory")
    sizes = [(mem + kind * stride + size, "I") for kind in range(_MEMORY_KINDS)]
    read = compile_reader(space, (mem + base, "Q"), *sizes)

    def start_and_size(module: int) -> tuple[int, int]:
        start, *sizes = read(module)
        return start, sum(sizes)

    return start_and_size
