"""Fitting the kallsyms tables of a kernel to those that are known: markers, offsets and index.

References: Linux scripts/kallsyms.c (``write_src``), which aligns and orders the tables. Commit
404bad70fcf7 (6.4) moved the offsets behind the tokens; 7.x made them relative to their own place.
"""

from array import array
from dataclasses import dataclass, replace
from struct import Struct
from typing import Final

from qvmi.addr import Va
from qvmi.errors import CorruptTable, MemoryFault
from qvmi.symbols.kallsyms import (
    MARKER_STEP,
    MAX_SYMBOLS,
    SEQ_SIZE,
    TOKENS,
    Addressing,
    Kallsyms,
    KallsymsTables,
    names_end,
)

__all__ = [
    "MAX_BLOCK",
    "MAX_NAMES_SIZE",
    "MIN_SYMBOLS",
    "ImageBytes",
    "KnownTables",
    "NamesPlace",
    "aligned",
    "complete_tables",
    "marker_run",
    "names_fit",
]

MIN_SYMBOLS: Final = 10_000
"""The smallest kernels with a console have about 20,000."""
MAX_NAMES_SIZE: Final = 16 << 20
"""Compressed names of a distribution's kernel take 1 to 3 MiB."""
MAX_BLOCK: Final = 256 * MARKER_STEP
"""What 256 names take: 2 to 256 bytes each on average (measured: 8 to 67; Rust has the longest)."""
_MIN_BLOCK: Final = 2 * MARKER_STEP
_MAX_MARKER_PLACES: Final = 32
"""A true image has one place of this form; one that is made of look-alikes is given up."""
_ADDRESS_SAMPLES: Final = 256
_GOOD_FIT: Final = 0.97
"""Of the sampled addresses so many must lie in the image, in rising order."""
_MAX_ABSOLUTE: Final = 0.1
"""Of them so few may be absolute, which are offsets into per-CPU areas (measured: below 0.02)."""
_FIRST_NAMES: Final = 8
_NAME_SAMPLES: Final = 32
_U32: Final = Struct("<I")
_U64: Final = Struct("<Q")


@dataclass(frozen=True, slots=True)
class ImageBytes:
    """This is a copied run of the kernel image.

    Args:
        start: virtual address of its first byte.
        data: the bytes.
        image_start: first address of the whole image, where symbols are expected.
        image_end: first address behind it.
    """

    start: Va
    data: bytes
    image_start: Va
    image_end: Va

    def read(self, va: Va, size: int) -> bytes:
        """This reads from the copy.

        Raises:
            MemoryFault: the range is not in it.
        """
        offset = va - self.start
        if offset < 0 or size < 0 or offset + size > len(self.data):
            raise MemoryFault(va, size, kind="virtual", why="outside of the copied image")
        return self.data[offset : offset + size]


@dataclass(frozen=True, slots=True)
class KnownTables:
    """These are the tables that are found first; the others are fitted to them.

    Args:
        names: address of ``kallsyms_names``.
        count: ``kallsyms_num_syms``.
        token_table: address of ``kallsyms_token_table``.
        token_index: address of ``kallsyms_token_index``.
    """

    names: Va
    count: int
    token_table: Va
    token_index: Va


@dataclass(frozen=True, slots=True)
class NamesPlace:
    """This is a place where compressed names and their markers may lie.

    Args:
        start: offset of the names.
        count: how many there are.
        markers_at: offset of the markers.
        markers: their values.
    """

    start: int
    count: int
    markers_at: int
    markers: "array[int]"


def complete_tables(image: ImageBytes, known: KnownTables) -> KallsymsTables:
    """This fits the markers, the offsets and the alphabetical index to the tables known.

    Raises:
        CorruptTable: no place fits.
    """
    if not MIN_SYMBOLS <= known.count <= MAX_SYMBOLS:
        raise CorruptTable("kallsyms_num_syms", f"{known.count} is no number of symbols")
    markers, long_names = _fit_markers(image, known)
    offsets, relative_base_at, addressing = _fit_offsets(image, known)
    relative_base = _u64(image, relative_base_at) if relative_base_at else 0
    tables = KallsymsTables(
        names=known.names,
        count=known.count,
        markers=markers,
        token_table=known.token_table,
        token_index=known.token_index,
        offsets=offsets,
        addressing=addressing,
        relative_base=relative_base,
        seqs_of_names=Va(0),
        long_names=long_names,
    )
    return replace(tables, seqs_of_names=_fit_seqs(image, tables, relative_base_at))


def _fit_markers(image: ImageBytes, known: KnownTables) -> tuple[Va, bool]:
    """This finds the markers of known names, and whether long names take two bytes."""
    data, start = image.data, known.names - image.start
    if not 0 <= start < len(data):
        raise CorruptTable("kallsyms_names", f"{known.names:#x} is outside of the copied image")
    marker_count = -(-known.count // MARKER_STEP)
    for long_names in (True, False):
        try:
            second = names_end(data, start, MARKER_STEP, long_names=long_names) - start
        except IndexError:
            continue
        wanted = _U32.pack(0) + _U32.pack(second)
        at = data.find(wanted, start, start + MAX_NAMES_SIZE)
        for _ in range(_MAX_MARKER_PLACES):
            if at < 0:
                break
            markers = marker_run(data, at, min(len(data), at + 4 * marker_count))
            names = NamesPlace(start, known.count, at, markers)
            if len(markers) == marker_count and names_fit(data, names):
                return Va(image.start + at), long_names
            at = data.find(wanted, at + 1, start + MAX_NAMES_SIZE)
    raise CorruptTable("kallsyms_markers", f"none fit the names at {known.names:#x}")


def _fit_offsets(image: ImageBytes, known: KnownTables) -> tuple[Va, Va, Addressing]:
    """This finds the offsets, their base (0 for none) and their meaning by the best fit."""
    size = 4 * known.count
    behind_tokens = known.token_index + 2 * TOKENS
    base_before = (known.names - 4) // 8 * 8 - 8
    candidates = [(base_before - aligned(size, 8), base_before)]
    # The nearest place first: one entry further on, place-relative offsets fit as well.
    for alignment in (4, 8):
        at = aligned(behind_tokens, alignment)
        candidates += [(at, aligned(at + size, 8)), (at, 0)]
    rated = [
        (_fit(image, Va(offsets), known.count, Va(base), addressing), offsets, base, addressing)
        for offsets, base in candidates
        for addressing in (
            (Addressing.ABSOLUTE_PERCPU, Addressing.RELATIVE)
            if base
            else (Addressing.PLACE_RELATIVE,)
        )
    ]
    fit, offsets, base, addressing = max(rated, key=lambda one: one[0])
    if fit < _GOOD_FIT:
        raise CorruptTable("kallsyms_offsets", f"the best place fits by {fit:.0%} only")
    return Va(offsets), Va(base), addressing


def _fit(image: ImageBytes, offsets: Va, count: int, base_at: Va, addressing: Addressing) -> float:
    """This rates a place: the share of sampled addresses that lie in the image and rise."""
    try:
        base = _u64(image, base_at) if base_at else 0
        words = array("I", image.read(offsets, 4 * count))
    except MemoryFault:
        return 0.0
    samples = range(0, count, max(1, count // _ADDRESS_SAMPLES))
    good, absolute, last = 0, 0, 0
    for index in samples:
        word = words[index]
        signed = word - (1 << 32) if word >> 31 else word
        if addressing is Addressing.ABSOLUTE_PERCPU and signed >= 0:
            absolute += 1
            continue
        if addressing is Addressing.PLACE_RELATIVE:
            address = offsets + 4 * index + signed
        elif addressing is Addressing.RELATIVE:
            address = base + word
        else:
            address = base - 1 - signed
        if address >= last and image.image_start <= address <= image.image_end:
            good += 1
            last = address
    if absolute > _MAX_ABSOLUTE * len(samples):
        return 0.0
    return good / (len(samples) - absolute)


def _fit_seqs(image: ImageBytes, tables: KallsymsTables, relative_base_at: Va) -> Va:
    """This finds the alphabetical index, 0 where the kernel has none.

    Raises:
        CorruptTable: the other tables do not hold what they should.
    """
    ends = [
        tables.markers + 4 * -(-tables.count // MARKER_STEP),
        tables.offsets + 4 * tables.count,
    ]
    if relative_base_at:
        ends.append(relative_base_at + 8)
    try:
        kallsyms = Kallsyms(image.read, tables)
    except MemoryFault as fault:
        raise CorruptTable("kallsyms", str(fault)) from fault
    for place in dict.fromkeys(aligned(end, to) for end in ends for to in (8, 4)):
        if _is_alphabetical(image, kallsyms, Va(place)):
            return Va(place)
    return Va(0)


def _is_alphabetical(image: ImageBytes, kallsyms: Kallsyms, place: Va) -> bool:
    """This tells whether the first and sampled entries number different symbols in name order."""
    count = len(kallsyms)
    seen: set[int] = set()
    last = b""
    samples = range(_FIRST_NAMES, count, max(1, count // _NAME_SAMPLES))
    for position in (*range(_FIRST_NAMES), *samples):
        try:
            entry = image.read(Va(place + SEQ_SIZE * position), SEQ_SIZE)
        except MemoryFault:
            return False
        index = int.from_bytes(entry, "big")
        if index >= count or index in seen or (name := kallsyms.name_at(index)) < last:
            return False
        seen.add(index)
        last = name
    return True


def names_fit(data: bytes, names: NamesPlace) -> bool:
    """This tells whether the first and the last block of names lie where the markers say."""
    markers, start = names.markers, names.start
    rest = names.count - MARKER_STEP * (len(markers) - 1)
    for long_names in (True, False):
        try:
            second = names_end(data, start, MARKER_STEP, long_names=long_names)
            if second - start != markers[1]:
                continue
            end = names_end(data, start + markers[-1], rest, long_names=long_names)
        except IndexError:
            continue
        if names.markers_at in (aligned(end, 8), aligned(end, 4)):
            return True
    return False


def marker_run(data: bytes, start: int, end: int) -> "array[int]":
    """This reads the numbers at an offset for as long as they may be markers."""
    size = min(end - start, 4 * (MAX_NAMES_SIZE // _MIN_BLOCK)) & ~3
    if data[start : start + 4] != bytes(4) or not _may_follow(0, data[start + 4 : start + 8]):
        return array("I")
    values = array("I", data[start : start + size])
    for position in range(1, len(values)):
        if not _MIN_BLOCK <= values[position] - values[position - 1] <= MAX_BLOCK:
            return values[:position]
    return values


def _may_follow(marker: int, following: bytes) -> bool:
    """This tells whether four bytes may be the marker behind another one."""
    return _MIN_BLOCK <= int.from_bytes(following, "little") - marker <= MAX_BLOCK


def _u64(image: ImageBytes, va: Va) -> int:
    value: int = _U64.unpack(image.read(va, _U64.size))[0]
    return value


def aligned(value: int, to: int) -> int:
    """This is the next multiple of ``to`` from a value on."""
    return -(-value // to) * to
