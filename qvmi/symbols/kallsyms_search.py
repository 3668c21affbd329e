"""Finding the kallsyms tables in a kernel image by their form alone, whatever their order.

References: Linux scripts/kallsyms.c (``write_src``; ``insert_real_symbols_in_table``: a character
that occurs in a name is its own token). Commit 404bad70fcf7 (6.4) moved the offsets behind the
tokens; 7.x made them relative to their own place.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from struct import Struct
from typing import Final

from qvmi.addr import Va
from qvmi.errors import CorruptTable, MemoryFault
from qvmi.symbols.kallsyms import (
    MARKER_STEP,
    SEQ_SIZE,
    TOKENS,
    Addressing,
    Kallsyms,
    KallsymsTables,
    names_end,
)

__all__ = ["ImageBytes", "KnownTables", "complete_tables", "search_tables"]

_DIGIT_TOKENS: Final = b"".join(b"%d\0" % digit for digit in range(10))
_MIN_SYMBOLS: Final = 10_000
"""The smallest kernels with a console have about 20,000."""
_MAX_NAMES_SIZE: Final = 16 << 20
"""Compressed names of a distribution's kernel take 1 to 3 MiB."""
_MIN_BLOCK: Final = 2 * MARKER_STEP
_MAX_BLOCK: Final = 256 * MARKER_STEP
"""What 256 names take: 2 to 256 bytes each on average (measured: 8 to 67; Rust has the longest)."""
_MAX_FALSE_MARKERS: Final = 4
"""Bytes behind the markers may pass for some more of them."""
_ADDRESS_SAMPLES: Final = 256
_GOOD_FIT: Final = 0.97
"""Of the sampled addresses so many must lie in the image, in rising order (a few are absolute)."""
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


def search_tables(image: ImageBytes) -> KallsymsTables:
    """This finds all tables of a kernel.

    It starts from the token table, whose ten digits are ten tokens of one character in a row, and
    fits all others to it.

    Raises:
        CorruptTable: nothing fits.
    """
    problem = "no table of tokens"
    for token_table, token_index in _token_tables(image.data):
        problem = "no table of names before the tokens"
        for names, count in _names_tables(image.data, token_table):
            known = KnownTables(
                Va(image.start + names),
                count,
                Va(image.start + token_table),
                Va(image.start + token_index),
            )
            try:
                return complete_tables(image, known)
            except CorruptTable as error:
                problem = str(error)
    raise CorruptTable("kallsyms", f"{problem} in {len(image.data)} bytes at {image.start:#x}")


def complete_tables(image: ImageBytes, known: KnownTables) -> KallsymsTables:
    """This fits the markers, the offsets and the alphabetical index to the tables known.

    Raises:
        CorruptTable: no place fits.
    """
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


def _token_tables(data: bytes) -> Iterator[tuple[int, int]]:
    """This iterates the offsets of (token table, token index) pairs that agree."""
    digits = data.find(_DIGIT_TOKENS)
    while digits >= 0:
        end = digits
        for _ in range(ord("0"), TOKENS):
            end = data.find(0, end) + 1
            if not end:
                return
        for alignment in (8, 4):
            at = _aligned(end, alignment)
            if at + 2 * TOKENS > len(data):
                continue
            index: tuple[int, ...] = Struct(f"<{TOKENS}H").unpack_from(data, at)
            table = digits - index[ord("0")]
            if index[0] == 0 and table >= 0 and _index_matches(data, table, index):
                yield table, at
                break
        digits = data.find(_DIGIT_TOKENS, digits + 1)


def _index_matches(data: bytes, table: int, index: tuple[int, ...]) -> bool:
    """This tells whether each token ends where the next one begins."""
    return all(
        data.find(0, table + offset) + 1 == table + following
        for offset, following in zip(index, index[1:], strict=False)
    )


def _names_tables(data: bytes, token_table: int) -> Iterator[tuple[int, int]]:
    """This iterates (offset of the names, number of symbols) before a token table.

    The markers lie between the two: a zero, then numbers that rise by what 256 names take. The
    last of them says how far before the markers the names begin, right behind their number.
    """
    lowest = max(0, token_table - _MAX_NAMES_SIZE)
    zeros = data.rfind(bytes(4), lowest, token_table)
    while zeros >= 0:
        start = (zeros + 3) & ~3
        markers = _marker_run(data, start, token_table)
        for count in range(len(markers), max(1, len(markers) - _MAX_FALSE_MARKERS), -1):
            yield from _names_before(data, start, markers[:count])
        zeros = data.rfind(bytes(4), lowest, zeros + 3)


def _marker_run(data: bytes, start: int, end: int) -> "array[int]":
    """This reads the numbers at an offset for as long as they may be markers."""
    size = min(end - start, 4 * (_MAX_NAMES_SIZE // _MIN_BLOCK)) & ~3
    values = array("I", data[start : start + size])
    if not values or values[0]:
        return array("I")
    for position in range(1, len(values)):
        if not _MIN_BLOCK <= values[position] - values[position - 1] <= _MAX_BLOCK:
            return values[:position]
    return values


def _names_before(data: bytes, markers_at: int, markers: "array[int]") -> Iterator[tuple[int, int]]:
    """This iterates (names, count) such that the names end right before the markers."""
    most = len(markers) * MARKER_STEP
    least = max(_MIN_SYMBOLS, most - MARKER_STEP + 1)
    if most < least or len(markers) < 2:
        return
    latest = markers_at - markers[-1]
    first = max(0, latest - _MAX_BLOCK - 8) & ~3
    words = array("I", data[first : max(first, latest) & ~3])
    for position, count in enumerate(words):
        if least <= count <= most:
            at = first + 4 * position
            for names in (at + 4, at + 8):
                if _names_fit(data, names, count, markers_at, markers):
                    yield names, count


def _names_fit(data: bytes, names: int, count: int, markers_at: int, markers: "array[int]") -> bool:
    """This tells whether the first and the last block of names lie where the markers say."""
    rest = count - MARKER_STEP * (len(markers) - 1)
    for long_names in (True, False):
        try:
            second = names_end(data, names, MARKER_STEP, long_names=long_names)
            if second - names != markers[1]:
                continue
            end = names_end(data, names + markers[-1], rest, long_names=long_names)
        except IndexError:
            continue
        if markers_at in (_aligned(end, 8), _aligned(end, 4)):
            return True
    return False


def _fit_markers(image: ImageBytes, known: KnownTables) -> tuple[Va, bool]:
    """This finds the markers of known names, and whether long names take two bytes."""
    data, names = image.data, known.names - image.start
    if not 0 <= names < len(data):
        raise CorruptTable("kallsyms_names", f"{known.names:#x} is outside of the copied image")
    marker_count = -(-known.count // MARKER_STEP)
    for long_names in (True, False):
        try:
            second = names_end(data, names, MARKER_STEP, long_names=long_names) - names
        except IndexError:
            continue
        at = data.find(_U32.pack(0) + _U32.pack(second), names)
        while 0 <= at <= names + _MAX_NAMES_SIZE:
            markers = _marker_run(data, at, min(len(data), at + 4 * marker_count))
            if len(markers) == marker_count and _names_fit(data, names, known.count, at, markers):
                return Va(image.start + at), long_names
            at = data.find(_U32.pack(0) + _U32.pack(second), at + 1)
    raise CorruptTable("kallsyms_markers", f"none fit the names at {known.names:#x}")


def _fit_offsets(image: ImageBytes, known: KnownTables) -> tuple[Va, Va, Addressing]:
    """This finds the offsets, their base (0 for none) and their meaning by the best fit."""
    size = 4 * known.count
    behind_tokens = known.token_index + 2 * TOKENS
    base_before = (known.names - 4) // 8 * 8 - 8
    candidates = [(base_before - _aligned(size, 8), base_before)]
    # The nearest place first: one entry further on, place-relative offsets fit as well.
    for alignment in (4, 8):
        at = _aligned(behind_tokens, alignment)
        candidates += [(at, _aligned(at + size, 8)), (at, 0)]
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
        samples = [
            (index, *_U32.unpack(image.read(Va(offsets + 4 * index), 4)))
            for index in range(0, count, max(1, count // _ADDRESS_SAMPLES))
        ]
    except MemoryFault:
        return 0.0
    good, last = 0, 0
    for index, word in samples:
        signed = word - (1 << 32) if word >> 31 else word
        if addressing is Addressing.PLACE_RELATIVE:
            address = offsets + 4 * index + signed
        elif addressing is Addressing.RELATIVE:
            address = base + word
        else:
            address = signed if signed >= 0 else base - 1 - signed
        percpu = addressing is Addressing.ABSOLUTE_PERCPU and signed >= 0
        if address >= last and (percpu or image.image_start <= address <= image.image_end):
            good += 1
            last = address
    return good / len(samples)


def _fit_seqs(image: ImageBytes, tables: KallsymsTables, relative_base_at: Va) -> Va:
    """This finds the alphabetical index, 0 where the kernel has none."""
    ends = [
        tables.markers + 4 * -(-tables.count // MARKER_STEP),
        tables.offsets + 4 * tables.count,
    ]
    if relative_base_at:
        ends.append(relative_base_at + 8)
    kallsyms = Kallsyms(image.read, tables)
    for place in dict.fromkeys(_aligned(end, to) for end in ends for to in (8, 4)):
        if _is_alphabetical(image, kallsyms, Va(place)):
            return Va(place)
    return Va(0)


def _is_alphabetical(image: ImageBytes, kallsyms: Kallsyms, place: Va) -> bool:
    """This tells whether sampled entries number symbols whose names rise."""
    count = len(kallsyms)
    last = b""
    for position in range(0, count, max(1, count // _NAME_SAMPLES)):
        try:
            entry = image.read(Va(place + SEQ_SIZE * position), SEQ_SIZE)
        except MemoryFault:
            return False
        index = int.from_bytes(entry, "big")
        if index >= count:
            return False
        name = kallsyms.name_at(index)
        if name < last:
            return False
        last = name
    return True


def _u64(image: ImageBytes, va: Va) -> int:
    value: int = _U64.unpack(image.read(va, _U64.size))[0]
    return value


def _aligned(value: int, to: int) -> int:
    return -(-value // to) * to
