"""Constants of the kernel that lead out of it: in tables of functions that nobody may change.

References: Linux include/asm-generic/vmlinux.lds.h (``RO_DATA``, ``__start_ro_after_init``): what is written
while the kernel starts lies among the constants, and may point anywhere.
"""

import hashlib
from array import array
from collections.abc import Iterator
from itertools import islice
from typing import Final

from qvmi.addr import Va
from qvmi.errors import MemoryFault
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.hooks.hook_places import HookPlace, HookPlaces
from qvmi.semantics.linux.hooks.syscall import symbol_text
from qvmi.semantics.linux.image.kernel_image import KernelImage
from qvmi.symbols.layout import Symbols

__all__ = ["CONSTANTS", "ConstantPointers"]

CONSTANTS: Final = "constants"
"""What they are called where code and hooks are told of."""
_MAX_SIZE: Final = 64 << 20
"""Bytes of all constants; those of 7.x are 13 MiB, BTF included."""
_MAX_CANDIDATES: Final = 100_000
"""Words that look like addresses outside of the image; a healthy kernel has some thousand."""
_CANONICAL: Final = 0xFF << 56
_ERRORS: Final = (1 << 64) - 4096
"""``IS_ERR_VALUE``: small negative numbers."""
_WORD: Final = 8
_PIECE: Final = 1 << 20


class ConstantPointers:
    """This looks for constants of one kernel that are addresses of code outside of its image.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        image: of the kernel.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols, image: KernelImage) -> None:
        self._space = space
        self._symbols = symbols
        self._image = image
        self._seen = b""
        self._found: tuple[HookPlace, ...] = ()
        self._left_out = 0

    def hooks(self, places: HookPlaces) -> None:
        """This adds what it finds; where the constants are the same, what it found."""
        find = self._symbols.find
        start, end = find("__start_rodata"), find("__end_rodata")
        if start is None or end is None:
            places.gap(CONSTANTS, None, "the kernel does not tell where they are")
            return
        if not 0 < end - start <= _MAX_SIZE:
            places.gap(CONSTANTS, start, f"{end - start} bytes of constants")
            return
        try:
            digest = self._digest(start, end)
            # What changes in between is read again in the next look, as it has another digest.
            if digest != self._seen:
                self._found = tuple(self._out_of(start, end))
                self._seen = digest
        except MemoryFault as fault:
            places.gap(CONSTANTS, start, str(fault))
            return
        places.found += self._found
        if self._left_out:
            places.gap(CONSTANTS, start, f"{self._left_out} addresses more than are looked at")

    def _digest(self, start: Va, end: Va) -> bytes:
        digest = hashlib.blake2b(digest_size=16)
        for _, data in self._pieces(start, end):
            digest.update(data)
        return digest.digest()

    def _pieces(self, start: Va, end: Va) -> Iterator[tuple[Va, bytes]]:
        """This reads all constants: all at once would take twice as much memory as all else."""
        for at in range(start, end, _PIECE):
            yield Va(at), self._space.read(Va(at), min(_PIECE, end - at))

    def _out_of(self, start: Va, end: Va) -> Iterator[HookPlace]:
        every = (one for at, data in self._pieces(start, end) for one in self._in(at, data))
        candidates = list(islice(every, _MAX_CANDIDATES))
        self._left_out = sum(1 for _ in every)
        find = self._symbols.find
        written = find("__start_ro_after_init") or 0, find("__end_ro_after_init") or 0
        for place, target in candidates:
            if not written[0] <= place < written[1] and self._is_code(target):
                yield HookPlace(CONSTANTS, symbol_text(self._symbols, place), place, target)

    def _in(self, start: Va, data: bytes) -> Iterator[tuple[int, int]]:
        """This iterates what looks like addresses outside of the image, with where they are."""
        low, high = self._image.start, self._image.end
        words = array("Q", data[: len(data) // _WORD * _WORD])
        return (
            (start + number * _WORD, word)
            for number, word in enumerate(words)
            if word >= _CANONICAL and word < _ERRORS and not low <= word < high
        )

    def _is_code(self, va: int) -> bool:
        try:
            rights = self._space.walk(Va(va)).permissions
        except MemoryFault:
            return False
        return rights.executable and not rights.user
