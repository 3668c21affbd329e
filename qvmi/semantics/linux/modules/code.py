"""What of the kernel's addresses is code, and whose.

References: Linux kernel/extable.c (``core_kernel_text``, ``kernel_text_address``),
include/asm-generic/sections.h; the text of eBPF programs and trampolines is in neither of both.
"""

from functools import cached_property
from typing import Final

from qvmi.addr import Va
from qvmi.errors import MemoryFault, SymbolsError
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.modules.module import Modules
from qvmi.semantics.linux.modules.module_memory import ModuleMemory, ModulePart
from qvmi.semantics.rows.modules import Module
from qvmi.symbols.layout import Symbols

__all__ = ["KernelCode"]

_BOUNDS: Final = (("_stext", "_etext"), ("_sinittext", "_einittext"))


class KernelCode:
    """This tells what code there is at one moment; it is made for one look.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        modules: lists the modules.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols, modules: Modules) -> None:
        self._space = space
        self._symbols = symbols
        self._modules = modules

    def in_kernel(self, va: Va) -> bool:
        """This tells whether an address is in the text of the kernel itself."""
        return any(start <= va < end for start, end in self._text)

    def module_of(self, va: Va) -> Module | None:
        """This is the module that an address is in, None where it is in none.

        Raises:
            WalkFailed: the list of modules cannot be walked at all.
        """
        found = (module for part, module in self._parts if part.start <= va < part.end)
        return next(found, None)

    def is_text(self, va: Va) -> bool:
        """This tells whether an address may be executed, by those who know what it is.

        Raises:
            WalkFailed: the list of modules cannot be walked at all.
        """
        if self.in_kernel(va):
            return True
        return self.module_of(va) is not None and self.is_executable(va)

    def is_executable(self, va: Va) -> bool:
        """This tells whether the kernel's page tables let it execute what is at an address."""
        try:
            rights = self._space.walk(va).permissions
        except MemoryFault:
            return False
        return rights.executable and not rights.user

    @cached_property
    def _text(self) -> tuple[tuple[Va, Va], ...]:
        pairs = [(self._symbols.find(one), self._symbols.find(other)) for one, other in _BOUNDS]
        return tuple((start, end) for start, end in pairs if start is not None and end is not None)

    @cached_property
    def _parts(self) -> tuple[tuple[ModulePart, Module], ...]:
        """The parts of all modules, with the module that each is of."""
        try:
            memory = ModuleMemory(self._space, self._symbols)
        except SymbolsError:
            return ()
        found: list[tuple[ModulePart, Module]] = []
        for module in self._modules.modules().rows.values():
            try:
                found += ((part, module) for part in memory.parts(module.struct_address))
            except MemoryFault:
                continue  # it was unloaded in the meantime
        return tuple(found)
