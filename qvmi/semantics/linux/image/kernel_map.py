"""How the kernel maps itself and all RAM, by variables of its own that the page tables agree with.

References: Linux Documentation/arch/x86/x86_64/mm.rst, arch/x86/include/asm/page_64.h
(``page_offset_base``), arch/x86/kernel/head_64.S (``init_top_pgt``); Documentation/arch/arm64/memory.rst,
arch/arm64/include/asm/memory.h (``PAGE_OFFSET``, ``memstart_addr``), arch/arm64/mm/init.c.
"""

from collections.abc import Iterator
from dataclasses import replace
from struct import Struct
from typing import Final

from qvmi.addr import Pa, Va
from qvmi.errors import MemoryFault
from qvmi.memory.address_space import AddressSpace, LinearRange
from qvmi.memory.physical import PhysicalMemory
from qvmi.semantics.guest_os import Evidence
from qvmi.semantics.linux.image.kernel_image import KernelImage
from qvmi.symbols.layout import Symbols

__all__ = ["direct_map_base", "with_direct_map", "with_own_tables"]

_POINTER: Final = Struct("<Q")
_ADDRESSES: Final = 1 << 64
_OWN_TABLES: Final = ("init_top_pgt", "swapper_pg_dir")
"""The first process's, whose kernel half all others share; x86-64 has a name of its own for them."""
_PAGE_OFFSET_BASE: Final = "page_offset_base"
_MEMSTART_ADDR: Final = "memstart_addr"
_VA_BITS: Final = (52, 48, 47, 42, 39, 36)
"""``CONFIG_ARM64_VA_BITS``: a kernel made for more bits than its processor has keeps to its own."""


def with_own_tables(
    image: KernelImage, memory: PhysicalMemory, symbols: Symbols
) -> tuple[KernelImage, tuple[Evidence, ...]]:
    """This goes over to the page tables of the kernel itself, if they map the image as is known.

    Those in CR3 may be a process's, which takes them with it when it ends.
    """
    for name in _OWN_TABLES:
        at = symbols.find(name)
        if at is None or not image.start <= at < image.end:
            continue
        own = replace(image, root=Pa(image.pa + at - image.start))
        try:
            if own.space(memory).walk(image.start).pa == image.pa:
                return own, (Evidence(f"the kernel's own page tables at {own.root:#x}", name),)
        except MemoryFault:
            continue
    return image, ()


def with_direct_map(
    image: KernelImage, space: AddressSpace, symbols: Symbols
) -> tuple[AddressSpace, tuple[Evidence, ...]]:
    """This adds the kernel's map of all RAM, if the page tables agree with it.

    Without it, as early in boot, every address is walked.
    """
    found = direct_map_base(image, space, symbols)
    if found is None:
        return space, ()
    base, name = found
    runs = [
        LinearRange(_at(base, ram.start), Va(_at(base, ram.start) + ram.size), ram.start)
        for ram in space.memory.ranges
    ]
    first = runs[0].start if runs else base
    evidence = Evidence(f"direct map of RAM at {first:#x}", f"{name} and page tables")
    return space.with_linear([image.linear, *runs]), (evidence,)


def direct_map_base(
    image: KernelImage, space: AddressSpace, symbols: Symbols
) -> tuple[Va, str] | None:
    """This is where the map of all RAM would have physical address 0, and the variable that tells it.

    The sum with a physical address is to be cut to 64 bits.

    Returns:
        None where the page tables agree with no such variable.
    """
    for base, name in _bases(space, symbols):
        try:
            if space.translate(_at(base, image.pa)) == image.pa:
                return Va(base % _ADDRESSES), name
        except MemoryFault:
            continue
    return None


def _bases(space: AddressSpace, symbols: Symbols) -> Iterator[tuple[int, str]]:
    """This iterates where physical address 0 would be in the map, and which variable says so."""
    base = _value(space, symbols, _PAGE_OFFSET_BASE)
    if base is not None:
        yield base, _PAGE_OFFSET_BASE
    start = _value(space, symbols, _MEMSTART_ADDR)
    if start is not None:
        yield from ((-(1 << bits) - start, _MEMSTART_ADDR) for bits in _VA_BITS)


def _value(space: AddressSpace, symbols: Symbols, name: str) -> int | None:
    at = symbols.find(name)
    if at is None:
        return None
    try:
        value: int = _POINTER.unpack(space.read(at, _POINTER.size))[0]
    except MemoryFault:
        return None
    return value


def _at(base: int, pa: Pa) -> Va:
    return Va((base + pa) % _ADDRESSES)
