"""Where the ORC tables of a running kernel and its modules lie, and what they say of one instruction.

References: Linux arch/x86/kernel/unwind_orc.c (``orc_find``, ``unwind_module_init``),
arch/x86/include/asm/module.h (``mod_arch_specific``).
"""

from collections.abc import Iterator, Sequence
from typing import Final

from qvmi.addr import Va
from qvmi.errors import MemoryFault
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.modules.code import KernelCode
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.symbols.layout import Symbols
from qvmi.symbols.orc import (
    MAX_ORCS,
    ORC_ADDRESS_SIZE,
    ORC_ROW_SIZE,
    OrcLayout,
    OrcRow,
    OrcTable,
    find_orc,
    read_numbering,
)

__all__ = ["OrcRows", "kernel_orc", "module_orc"]

_MEMBERS: Final = ("num_orcs", "orc_unwind_ip", "orc_unwind")


def kernel_orc(symbols: Symbols) -> Iterator[OrcTable]:
    """This is the kernel's own table, where it has one."""
    start, stop = symbols.find("__start_orc_unwind_ip"), symbols.find("__stop_orc_unwind_ip")
    rows = symbols.find("__start_orc_unwind")
    if start is not None and stop is not None and rows is not None:
        yield OrcTable(start, rows, (stop - start) // ORC_ADDRESS_SIZE)


def module_orc(space: AddressSpace, symbols: Symbols, modules: Sequence[Va]) -> Iterator[OrcTable]:
    """These are the tables of some modules; one that is gone has none.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        modules: addresses of their ``struct module``. Corresponds to ``module.arch``.
    """
    arch = symbols.find_field("module", ("arch",))
    members = [symbols.find_field("mod_arch_specific", (name,)) for name in _MEMBERS]
    places = [one.offset for one in members if one is not None]
    if arch is None or len(places) != len(members):
        return
    formats = zip(places, "IQQ", strict=True)
    read = compile_reader(space, *((arch.offset + at, code) for at, code in formats))
    left = MAX_ORCS
    for module in modules:
        try:
            count, addresses, rows = read(module)
            space.read(addresses, ORC_ADDRESS_SIZE * min(count, MAX_ORCS))
            space.read(rows, ORC_ROW_SIZE * min(count, MAX_ORCS))
        except MemoryFault:
            continue
        left -= count
        if left < 0:
            return
        yield OrcTable(Va(addresses), Va(rows), count)


class OrcRows:
    """This looks up how the caller of one instruction is found, without reading the tables whole.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        code: tells what code an address belongs to.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols, code: KernelCode) -> None:
        self._space = space
        self._symbols = symbols
        self._code = code
        self._layout = OrcLayout.of(symbols)
        self._table = next(kernel_orc(symbols), None)
        self._numbering = None
        if self._layout is not None and self._table is not None:
            self._numbering = read_numbering(space.read, self._layout, self._table)

    @property
    def usable(self) -> bool:
        """This tells whether the kernel has tables whose form is known."""
        return self._numbering is not None

    def at(self, va: Va) -> OrcRow | None:
        """This is the row of an instruction.

        Returns:
            None for code that no table is about, such as programs of eBPF.

        Raises:
            MemoryFault: a table cannot be read.
            WalkFailed: the list of modules cannot be walked at all.
        """
        if self._layout is None or self._numbering is None:
            return None
        table = self._table_of(va)
        entry = None if table is None else find_orc(self._space.read, table, va)
        return None if entry is None else self._layout.row(entry, self._numbering)

    def _table_of(self, va: Va) -> OrcTable | None:
        if self._code.in_kernel(va):
            return self._table
        module = self._code.module_of(va)
        if module is None:
            return None
        return next(module_orc(self._space, self._symbols, [module.struct_address]), None)
