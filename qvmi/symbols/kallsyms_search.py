"""Finding the kallsyms tables in a kernel image by their form alone, whatever their order.

References: Linux scripts/kallsyms.c (``write_src``; ``insert_real_symbols_in_table``: a character
that occurs in a name is its own token).
"""

from collections.abc import Iterator
from itertools import islice, pairwise
from struct import Struct
from typing import TYPE_CHECKING, Final

from qvmi.addr import Va
from qvmi.errors import CorruptTable
from qvmi.symbols.kallsyms import MARKER_STEP, TOKENS, KallsymsTables
from qvmi.symbols.kallsyms_fit import (
    MAX_BLOCK,
    MAX_NAMES_SIZE,
    MIN_SYMBOLS,
    ImageBytes,
    KnownTables,
    NamesPlace,
    aligned,
    complete_tables,
    marker_run,
    names_fit,
)

if TYPE_CHECKING:
    from array import array

__all__ = ["search_tables"]

_DIGIT_TOKENS: Final = b"".join(b"%d\0" % digit for digit in range(10))
_MAX_TOKEN_TABLE: Final = 1 << 16
"""Bytes; ``kallsyms_token_index`` holds offsets of 16 bits."""
_MIN_MARKERS: Final = MIN_SYMBOLS // MARKER_STEP
_MAX_FALSE_MARKERS: Final = 4
"""Bytes behind the markers may pass for some more of them."""
# A true image has one place of each form. One that is made of look-alikes is given up after:
_MAX_DIGITS: Final = 8
_MAX_ZEROS: Final = 1 << 14
_MAX_MARKER_TABLES: Final = 32
_MAX_NAMES_TABLES: Final = 256


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
        for names in islice(_names_tables(image.data, token_table), _MAX_NAMES_TABLES):
            if not names_fit(image.data, names):
                continue
            known = KnownTables(
                Va(image.start + names.start),
                names.count,
                Va(image.start + token_table),
                Va(image.start + token_index),
            )
            try:
                return complete_tables(image, known)
            except CorruptTable as error:
                problem = str(error)
    raise CorruptTable("kallsyms", f"{problem} in {len(image.data)} bytes at {image.start:#x}")


def _token_tables(data: bytes) -> Iterator[tuple[int, int]]:
    """This iterates the offsets of (token table, token index) pairs that agree."""
    digits = data.find(_DIGIT_TOKENS)
    for _ in range(_MAX_DIGITS):
        if digits < 0:
            return
        yield from _token_tables_around(data, digits)
        digits = data.find(_DIGIT_TOKENS, digits + 1)


def _token_tables_around(data: bytes, digits: int) -> Iterator[tuple[int, int]]:
    """This iterates the pairs whose ten digits lie at an offset: one, or none."""
    behind = digits
    for _ in range(ord("0"), TOKENS):
        behind = data.find(0, behind, digits + _MAX_TOKEN_TABLE) + 1
        if not behind:
            return
    for alignment in (8, 4):
        at = aligned(behind, alignment)
        if at + 2 * TOKENS > len(data):
            continue
        index: tuple[int, ...] = Struct(f"<{TOKENS}H").unpack_from(data, at)
        table = digits - index[ord("0")]
        if index[0] == 0 and table >= 0 and _index_matches(data, table, index):
            yield table, at
            return


def _index_matches(data: bytes, table: int, index: tuple[int, ...]) -> bool:
    """This tells whether each token ends where the next one begins."""
    return all(
        data.find(0, table + offset, table + following) == table + following - 1
        for offset, following in pairwise(index)
    )


def _names_tables(data: bytes, token_table: int) -> Iterator[NamesPlace]:
    """This iterates where names may lie before a token table.

    The markers lie between the two: a zero, then numbers that rise by what 256 names take. The
    last of them says how far before the markers the names begin, right behind their number.
    """
    for start, markers in islice(_marker_tables(data, token_table), _MAX_MARKER_TABLES):
        for count in range(len(markers), len(markers) - _MAX_FALSE_MARKERS, -1):
            yield from _names_before(data, start, markers[:count])


def _marker_tables(data: bytes, token_table: int) -> Iterator[tuple[int, "array[int]"]]:
    """This iterates (offset, values) of what may be markers before a token table, last first."""
    lowest = max(0, token_table - MAX_NAMES_SIZE)
    zeros = data.rfind(bytes(4), lowest, token_table)
    for _ in range(_MAX_ZEROS):
        if zeros < 0:
            return
        start = (zeros + 3) & ~3
        markers = marker_run(data, start, token_table)
        if len(markers) >= _MIN_MARKERS:
            yield start, markers
        zeros = data.rfind(bytes(4), lowest, zeros + 3)


def _names_before(data: bytes, markers_at: int, markers: "array[int]") -> Iterator[NamesPlace]:
    """This iterates where names may begin such that they end right before the markers."""
    most = len(markers) * MARKER_STEP
    least = max(MIN_SYMBOLS, most - MARKER_STEP + 1)
    if most < least:
        return
    latest = markers_at - markers[-1]
    first = max(1, latest - MAX_BLOCK - 8)
    for upper in (most - 1 >> 8, most >> 8):
        # The number of symbols, lowest byte first: the three upper bytes are known.
        at = data.find(upper.to_bytes(3, "little"), first, latest)
        while at >= 0:
            count = upper << 8 | data[at - 1]
            if (at - 1) % 4 == 0 and least <= count <= most:
                yield NamesPlace(at + 3, count, markers_at, markers)
                yield NamesPlace(at + 7, count, markers_at, markers)
            at = data.find(upper.to_bytes(3, "little"), at + 1, latest)
