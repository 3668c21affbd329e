"""All names of a running kernel and its modules, and where they may lie, for a debugger.

References: Linux arch/x86/kernel/vmlinux.lds.S, arch/arm64/kernel/vmlinux.lds.S and
include/asm-generic/sections.h, for what the kernel calls the ends of its parts.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from qvmi.addr import Va
from qvmi.errors import MemoryFault, SymbolsError, WalkFailed
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap, Module
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.linux.image.kernel_image import KernelImage
from qvmi.semantics.linux.modules.module_memory import ModuleMemory
from qvmi.semantics.linux.stacks.orc import kernel_orc, module_orc
from qvmi.symbols.eh_frame import eh_frame
from qvmi.symbols.elf_symbols import ElfMachine, ElfRange, ElfSymbol, symbols_elf
from qvmi.symbols.isf_file import IsfSymbols
from qvmi.symbols.layout import Symbols
from qvmi.symbols.live import LiveSymbols
from qvmi.symbols.orc import OrcLayout, read_orc

__all__ = ["DebugSymbols", "debug_symbols"]

_CODE: Final = (
    (".text", ("_text", "_stext"), "_etext"),
    (".init.text", ("_sinittext",), "_einittext"),
)
"""The parts of the image that are code: a name, the symbols that one of begins it, and its end."""
_MACHINES: Final = {"x86_64": ElfMachine.X86_64, "aarch64": ElfMachine.AARCH64}


@dataclass(frozen=True, slots=True)
class DebugSymbols:
    """This is what a debugger is told of a guest.

    Args:
        elf: the file.
        gaps: what could not be read; symbols are missing there.
    """

    elf: bytes
    gaps: tuple[Gap, ...]


def debug_symbols(guest: LinuxGuest) -> DebugSymbols:
    """This gathers all symbols of the kernel and its modules, at the addresses of now.

    Raises:
        SymbolsError: the kernel's own table contradicts itself, or cannot be read.
        StaleView: another kernel runs there now.
    """
    kernel = guest.kernel
    ranges = list(_image_ranges(kernel.image, kernel.symbols))
    symbols = list(_kernel_symbols(kernel.symbols))
    gaps: list[Gap] = []
    modules: Sequence[Module] = ()
    try:
        found, listing = guest.modules(), guest.module_symbols()
        memory = ModuleMemory(kernel.space, kernel.symbols)
    except (SymbolsError, WalkFailed) as error:
        gaps.append(Gap("modules", kernel.image.start, str(error)))
    else:
        gaps += [*found.gaps, *listing.gaps]
        modules = found.items
        for module in modules:
            ranges += _module_ranges(memory, module.name, module.struct_address)
        symbols += (
            ElfSymbol(row.address, row.name, is_global=row.type.isupper()) for row in listing.items
        )
    machine = _MACHINES[guest.facts().architecture]
    structs = [module.struct_address for module in modules]
    try:
        callers = b"".join(_callers(kernel.space, kernel.symbols, structs))
    except (SymbolsError, MemoryFault) as error:
        gaps.append(Gap("orc_unwind", None, str(error)))
        callers = b""
    elf = symbols_elf(ranges, symbols, machine=machine, callers=callers)
    return DebugSymbols(elf, tuple(gaps))


def _callers(space: AddressSpace, symbols: Symbols, modules: Sequence[Va]) -> Iterator[bytes]:
    """This is how callers are found; empty where the kernel does not tell."""
    layout = OrcLayout.of(symbols)
    if layout is not None:
        tables = [*kernel_orc(symbols), *module_orc(space, symbols, modules)]
        yield eh_frame(read_orc(space.read, layout, tables))


def _kernel_symbols(symbols: Symbols) -> Iterable[ElfSymbol]:
    if isinstance(symbols, LiveSymbols):
        return (
            ElfSymbol(one.address, one.name, is_global=one.type.isupper())
            for one in symbols.kallsyms.symbols()
        )
    if isinstance(symbols, IsfSymbols):
        return (ElfSymbol(va, name, is_global=True) for name, va in symbols.addresses())
    return ()


def _image_ranges(image: KernelImage, symbols: Symbols) -> Iterator[ElfRange]:
    """These are the parts of the image that are code, and all the rest of it."""
    at = image.start
    for code in sorted(_code_ranges(image, symbols), key=lambda one: one.start):
        if code.start < at:
            continue
        yield ElfRange(".data", at, code.start, is_code=False)
        yield code
        at = code.end
    # Where the kernel has not named the end of its code, all of it may be code.
    yield ElfRange(".data", at, image.end, is_code=at == image.start)


def _code_ranges(image: KernelImage, symbols: Symbols) -> Iterator[ElfRange]:
    for name, starts, stop in _CODE:
        start = next((va for one in starts if (va := symbols.find(one)) is not None), None)
        end = symbols.find(stop)
        if start is not None and end is not None and image.start <= start < end <= image.end:
            yield ElfRange(name, start, end, is_code=True)


def _module_ranges(memory: ModuleMemory, name: str, struct: Va) -> Iterator[ElfRange]:
    """These are the parts of a module; all may be code, for on older kernels one part holds all."""
    try:
        parts = memory.parts(struct)
    except MemoryFault:
        return  # it was unloaded in the meantime
    for part in parts:
        yield ElfRange(name, part.start, part.end, is_code=True)
