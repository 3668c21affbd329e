"""Where an aarch64 kernel keeps its ``struct page``, which Volatility knows of x86 alone.

References: Linux arch/arm64/include/asm/pgtable.h (``vmemmap``), arch/arm64/kernel/vmcore_info.c
(``VMEMMAP_START``); Volatility 3 framework/symbols/linux/extensions (``page.to_paddr``).
"""

from struct import Struct
from typing import Final

from volatility3.framework.symbols.linux import extensions

from qvmi.addr import PAGE_SIZE
from qvmi.errors import MemoryFault
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.linux.image.vmcoreinfo import parse_vmcoreinfo

__all__ = ["page_class"]

_ADDRESSES: Final = 1 << 64
_SIGNED: Final = Struct("<q")
"""``memstart_addr`` is below zero where KASLR moved the map of all RAM beyond its beginning."""


def page_class(guest: LinuxGuest) -> type | None:
    """This is a page that knows where it is; None where Volatility's own does, or nobody tells.

    The array of all pages begins where the kernel's note for crash dumps says, with the page at which
    the map of all RAM begins.
    """
    kernel = guest.kernel
    start = parse_vmcoreinfo(guest.vmcoreinfo()).number("VMEMMAP_START")
    first, size = kernel.symbols.find("memstart_addr"), kernel.symbols.size_of("page")
    if start is None or first is None or size is None:
        return None
    try:
        pa = _SIGNED.unpack(kernel.space.read(first, _SIGNED.size))[0]
    except MemoryFault:
        return None
    of_page_0 = (start - pa // PAGE_SIZE * size) % _ADDRESSES
    return type("page", (extensions.page,), {"_intel_vmemmap_start": of_page_0})
