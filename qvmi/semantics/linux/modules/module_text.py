"""Where the code of a loaded module lies.

References: Linux include/linux/module.h (``within_module_core``, ``struct module_layout``,
``MOD_TEXT``, ``MOD_INIT_TEXT``), kernel/module/main.c (``do_init_module`` frees the latter).
"""

from collections.abc import Iterator
from typing import Final

from qvmi.addr import Va
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.structures.record import Reader, compile_reader
from qvmi.semantics.rows.modules import Module
from qvmi.symbols.layout import Symbols, field, field_offset, struct_size

__all__ = ["ModuleText"]

_TEXT_KINDS: Final = (0, 4)
"""``MOD_TEXT`` and ``MOD_INIT_TEXT``."""
_MAX_TEXT: Final = 1 << 30
"""The address space for modules holds little more."""


class ModuleText:
    """This reads where modules have their code.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.

    Raises:
        SymbolsError: the profile lacks what this needs, or describes no possible layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols) -> None:
        self._read = _reader(space, symbols)

    def of(self, module: Module) -> Iterator[tuple[Va, Va]]:
        """This gives the runs of a module's code as [start, end), what runs for good first.

        Raises:
            MemoryFault: there is no such module, or no longer.
        """
        values = self._read(module.struct_address)
        return (
            (Va(start), Va(start + size))
            for start, size in zip(values[::2], values[1::2], strict=True)
            if start and 0 < size < _MAX_TEXT
        )


def _reader(space: AddressSpace, symbols: Symbols) -> Reader:
    """This makes the reader of (start, size) of what runs for good, and of what only runs at first."""
    parts = field(symbols, "module", "mem", "core_layout")
    if parts.name == "core_layout":
        layout, size_name = "module_layout", "text_size"
        offsets = [parts.offset, field_offset(symbols, "module", "init_layout")]
    else:
        layout, size_name = "module_memory", "size"
        stride = struct_size(symbols, layout)
        offsets = [parts.offset + kind * stride for kind in _TEXT_KINDS]
    base = field_offset(symbols, layout, "base")
    size = field_offset(symbols, layout, size_name)
    return compile_reader(
        space, *(one for at in offsets for one in ((at + base, "Q"), (at + size, "I")))
    )
