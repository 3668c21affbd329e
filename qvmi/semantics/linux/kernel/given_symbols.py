"""Symbols out of an ISF file that the user gives, once it has proven to be of the kernel that runs."""

import re
from pathlib import Path
from typing import Final

from qvmi.addr import Va
from qvmi.errors import MemoryFault, UsageError
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.image.kernel_image import KernelImage
from qvmi.symbols.isf_file import IsfFile, IsfSymbols
from qvmi.symbols.profile import MAX_BANNER

__all__ = ["symbols_from_isf"]

_BANNER_START: Final = b"Linux version "
_BANNER: Final = re.compile(rb"(?<=\0)Linux version [^\0\n]{1,%d}(?=[\0\n])" % MAX_BANNER)
_BUILD_NUMBER: Final = re.compile(rb" #[0-9]")
"""Newer images also hold the weak ``linux_banner`` of init/version.o, made before the build had a number
and a time: ``# SMP`` instead of ``#1 SMP``."""
_MAX_SEARCH: Final = 64 << 20
"""Bytes of read-only data searched for the banner; kernels have 5 to 20 MiB of it."""


def symbols_from_isf(path: Path, image: KernelImage, space: AddressSpace) -> IsfSymbols:
    """This reads an ISF file and compares its banner with that of the running kernel.

    Args:
        path: of the file.
        image: of the kernel.
        space: the kernel's address space.

    Raises:
        UsageError: the file cannot be read, or is of another kernel; says of which.
        CorruptTable: it is damaged, or is no ISF file of a Linux kernel.
    """
    file = IsfFile.read(path)
    symbols = IsfSymbols(file, slide=file.slide(image.start))
    at = symbols.find("linux_banner")
    banner = b"" if at is None else _banner_at(space, at)
    if not banner or file.banner not in {b"", banner}:
        running = banner or _find_banner(space, image) or b"a kernel without a banner"
        raise UsageError(
            f"{path} is not of the kernel that runs here; make one of it with `qvmi isf`"
            f" or dwarf2json\n  file:  {_text(file.banner)}\n  guest: {_text(running)}"
        )
    return symbols


def _banner_at(space: AddressSpace, at: Va) -> bytes:
    """This is the banner at an address; empty where there is none."""
    try:
        text = space.read(at, MAX_BANNER).partition(b"\0")[0].rstrip(b"\n")
    except MemoryFault:
        return b""
    return text if text.startswith(_BANNER_START) else b""


def _find_banner(space: AddressSpace, image: KernelImage) -> bytes:
    """This searches the image's read-only data for the banner; empty where there is none."""
    banners: list[bytes] = []
    for run in image.runs(space.memory, writable=False, executable=False):
        try:
            banners += _BANNER.findall(space.read(run.va, min(run.size, _MAX_SEARCH)))
        except MemoryFault:
            continue
    finished = (banner for banner in banners if _BUILD_NUMBER.search(banner))
    return next(finished, banners[0] if banners else b"")


def _text(banner: bytes) -> str:
    return banner.decode("utf-8", "backslashreplace") or "a kernel that it does not name"
