"""Where the parts of a loaded module lie in memory.

References: Linux include/linux/module.h; ``core_layout`` and ``init_layout`` became ``mem[]`` in
6.4 by ac3b43283923.
"""

from typing import Final, NamedTuple

from qvmi.addr import Va
from qvmi.errors import LayoutNotFound
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.structures.record import Reader, compile_reader
from qvmi.symbols.layout import Symbols, field, field_offset

__all__ = ["ModuleMemory", "ModulePart"]

_MEMORY_KINDS: Final = 7
"""``MOD_MEM_NUM_TYPES``: text, data, rodata, ro_after_init and three for init."""

_MAX_PART: Final = 1 << 31
"""The address space for modules is smaller."""


class ModulePart(NamedTuple):
    """This is a run of addresses of one module, [start, end)."""

    start: Va
    end: Va


class ModuleMemory:
    """This reads the parts of modules of one kernel.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.

    Raises:
        SymbolsError: the profile lacks what this needs, or describes no possible layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols) -> None:
        self._read = _reader(space, symbols)

    def parts(self, module: Va) -> tuple[ModulePart, ...]:
        """These are the parts of a module, its text first; what was only for its start is gone.

        Raises:
            MemoryFault: there is no such module, or no longer.
        """
        values = self._read(module)
        pairs = zip(values[::2], values[1::2], strict=True)
        return tuple(
            ModulePart(Va(start), Va(start + size)) for start, size in pairs if 0 < size < _MAX_PART
        )


def _reader(space: AddressSpace, symbols: Symbols) -> Reader:
    """This makes the reader of (start, size) of each part, for the layout this kernel has."""
    parts = field(symbols, "module", "mem", "core_layout")
    if parts.name == "core_layout":
        layout, offsets = "module_layout", [parts.offset]
        offsets.append(field_offset(symbols, "module", "init_layout"))
    else:
        layout = "module_memory"
        stride = symbols.size_of(layout)
        if not stride:
            raise LayoutNotFound(layout)
        offsets = [parts.offset + kind * stride for kind in range(_MEMORY_KINDS)]
    base = field_offset(symbols, layout, "base")
    size = field_offset(symbols, layout, "size")
    members = [one for at in offsets for one in ((at + base, "Q"), (at + size, "I"))]
    return compile_reader(space, *members)
