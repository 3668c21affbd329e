"""Raw RAM, whose file does not say where which byte lies in the machine.

References: QEMU ``hw/i386/pc_q35.c`` (``pc_q35_init``) and ``hw/i386/pc_piix.c`` (``pc_init1``): what
does not fit below the PCI hole lies at 4 GiB and above; ``hw/i386/x86.c``, ``max-ram-below-4g``;
``hw/arm/virt.c`` (``base_memmap``): all of it lies at 1 GiB and above.
"""

from collections.abc import Iterator
from typing import Final

from qvmi.addr import PAGE_SIZE, Pa
from qvmi.memory.dump_contents import DumpContents, checked_piece, without_overlaps
from qvmi.memory.input_file import InputFile

__all__ = ["ABOVE_4G", "raw_contents"]

ABOVE_4G: Final = 1 << 32
_GIB: Final = 1 << 30
_BELOW_4G: Final = (2 * _GIB, 3 * _GIB, 0xE000_0000, 0xB000_0000, _GIB)
"""What QEMU's x86 machines have below the hole when there is more: q35; pc and microvm; and what
``max-ram-below-4g`` is set to."""
_VIRT_START: Final = Pa(_GIB)
"""Where RAM begins in QEMU's machine ``virt`` of aarch64."""


def raw_contents(file: InputFile, below_4g: int | None = None) -> Iterator[DumpContents]:
    """This iterates the ways in which the file may be a machine's RAM, the simplest first.

    Args:
        file: of the RAM.
        below_4g: how much of it lies below 4 GiB, where that is known: the only way then.

    Raises:
        NotADump: it is no whole number of pages.
    """
    if file.size % PAGE_SIZE:
        raise file.refusal(
            f"is no dump that is known, nor raw RAM: {file.size} bytes are no whole number of pages"
        )
    if below_4g is None:
        yield _split(file, file.size)
        pieces = [checked_piece(file, _VIRT_START, file.size, 0)]
        words = f"raw RAM from {_VIRT_START:#x} on"
        yield DumpContents(words, without_overlaps(file, pieces))
    for split in _BELOW_4G if below_4g is None else (below_4g,):
        if split < file.size:
            yield _split(file, split)
        elif below_4g is not None:
            yield _split(file, file.size)


def _split(file: InputFile, below_4g: int) -> DumpContents:
    above = file.size - below_4g
    pieces = [checked_piece(file, 0, below_4g, 0)]
    if above:
        pieces.append(checked_piece(file, ABOVE_4G, above, below_4g))
    words = f"raw RAM, {below_4g >> 20} MiB of it below 4 GiB" if above else "raw RAM"
    return DumpContents(words, without_overlaps(file, pieces))
