"""Packed files are unpacked by their first bytes, and never beyond a bound."""

import bz2
import gzip
import lzma
from collections.abc import Callable
from io import BytesIO

import pytest

from qvmi.errors import CorruptTable
from qvmi.symbols.isf_compression import compress, decompress

MIB = 1 << 20
TEXT = b'{"symbols": {}}' * 1000

Pack = Callable[[bytes], bytes]


@pytest.mark.parametrize("name", ["a.json", "a.json.xz", "a.json.gz", "a.json.bz2", "xz", ""])
def test_what_was_packed_is_unpacked(name: str) -> None:
    assert decompress(BytesIO(compress(TEXT, name)), name, limit=MIB) == TEXT


@pytest.mark.parametrize("pack", [bytes, lzma.compress, gzip.compress, bz2.compress])
@pytest.mark.parametrize(("size", "is_read"), [(3 * MIB, True), (3 * MIB + 1, False)])
def test_the_bound_is_exact(pack: Pack, size: int, *, is_read: bool) -> None:
    packed = BytesIO(pack(bytes(size)))
    if is_read:
        assert len(decompress(packed, "bound", limit=3 * MIB)) == size
    else:
        with pytest.raises(CorruptTable, match="bound: it holds more than 3 MiB"):
            decompress(packed, "bound", limit=3 * MIB)


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress, bz2.compress])
def test_every_cut_is_noticed(pack: Pack) -> None:
    packed = pack(TEXT)
    for length in range(10, len(packed)):
        with pytest.raises(CorruptTable, match="cut: it is damaged"):
            decompress(BytesIO(packed[:length]), "cut", limit=MIB)


def test_an_archive_that_asks_for_too_much_memory_is_refused() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 512 * MIB}]
    packed = lzma.compress(b"{}", filters=filters)
    with pytest.raises(CorruptTable, match="greedy: it is damaged: Memory usage limit"):
        decompress(BytesIO(packed), "greedy", limit=MIB)
