"""Symbol tables that are forged, damaged, or made of nothing but look-alikes."""

import random
import struct
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvmi.addr import Va
from qvmi.errors import CorruptTable, MemoryFault
from qvmi.symbols.kallsyms import Kallsyms
from qvmi.symbols.kallsyms_fit import ImageBytes, KnownTables, complete_tables
from qvmi.symbols.kallsyms_search import search_tables
from tests.hostile.bounds import cpu_seconds, peak_mib
from tests.synthetic.kallsyms import build_kallsyms, plain_lines
from tests.unit.symbols.kallsyms_forms import (
    FORMS,
    TABLES,
    TEXT,
    TableMemory,
    built_form,
    tables_of,
)

IMAGE_END = 0xFFFF_FFFF_9000_0000
COUNT = 10_300
MIB = 1 << 20
DIGITS = b"".join(b"%d\0" % digit for digit in range(10))

wrong_words = st.tuples(
    st.floats(0, 1, exclude_max=True),
    st.one_of(
        st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0xFFFF_FFFF, 0x8000_0000, 0x0101_0101]),
        st.integers(0, 0xFFFF_FFFF),
    ),
)


def image(data: bytes, start: int = TABLES) -> ImageBytes:
    return ImageBytes(Va(start), data, Va(TEXT - 0x1000), Va(IMAGE_END))


def ask_everything(kallsyms: Kallsyms) -> None:
    """All questions; each may find the tables corrupt, which ends it."""
    questions: list[Callable[[], object]] = [
        lambda: kallsyms.find("_text"),
        lambda: kallsyms.find("no_such_name"),
        lambda: kallsyms.nearest(Va(TEXT + 0x1234)),
        lambda: kallsyms.at(len(kallsyms) - 1),
        lambda: sum(len(one.name) for one in kallsyms.symbols()),
    ]
    for ask in questions:
        with suppress(CorruptTable):
            ask()


@settings(max_examples=200)
@given(st.sampled_from(list(FORMS)), st.lists(wrong_words, min_size=1, max_size=12))
def test_damaged_tables_answer_or_are_corrupt(form: str, wrong: list[tuple[float, int]]) -> None:
    built = built_form(form)
    memory = TableMemory(built)
    for place, word in wrong:
        struct.pack_into("<I", memory.data, int(place * (len(built.data) - 4)), word)
    with suppress(CorruptTable, MemoryFault):
        ask_everything(Kallsyms(memory.read, tables_of(built, FORMS[form].addressing)))


@settings(max_examples=40)
@given(st.sampled_from(list(FORMS)), st.lists(wrong_words, min_size=1, max_size=12))
def test_a_damaged_image_has_tables_or_none(form: str, wrong: list[tuple[float, int]]) -> None:
    data = bytearray(built_form(form, COUNT).data)
    for place, word in wrong:
        struct.pack_into("<I", data, int(place * (len(data) - 4)), word)
    searched = image(bytes(data))
    with suppress(CorruptTable):
        ask_everything(Kallsyms(searched.read, search_tables(searched)))


@settings(max_examples=60)
@given(
    names=st.integers(-16, 300_000),
    count=st.integers(0, 1 << 32),
    token_table=st.integers(-16, 300_000),
    token_index=st.integers(-16, 300_000),
)
def test_a_forged_note_names_tables_or_none(
    names: int, count: int, token_table: int, token_index: int
) -> None:
    searched = image(built_form("6.12", COUNT).data)
    places = (Va(TABLES + place) for place in (names, token_table, token_index))
    first, second, third = places
    with suppress(CorruptTable):
        complete_tables(searched, KnownTables(first, count, second, third))


# ------------------------------------------------------------------------------- look-alikes by the million


def zeros(size: int) -> bytes:
    return bytes(size)


def digits_only(size: int) -> bytes:
    return DIGITS * (size // len(DIGITS))


def tokens_behind(filler: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """Bytes of one kind, with a true token table behind them."""

    def make(size: int) -> bytes:
        built = built_form("6.12", COUNT)
        tokens = built.data[built.at["token_table"] - built.start :][:2048]
        return filler(size) + tokens

    return make


def markers_only(size: int) -> bytes:
    """Runs of numbers that rise as markers do, one behind the other."""
    run = struct.pack("<64I", *(n * 3000 for n in range(64)))
    return run * (size // len(run))


def counts_and_markers(size: int) -> bytes:
    """Every word passes for the number of symbols that the markers behind it stand for."""
    run = struct.pack("<64I", *(n * 3000 for n in range(64)))
    words = struct.pack("<I", 64 * 256 - 7) * 20_000
    return (words + run) * (size // (len(words) + len(run)))


def noise(size: int) -> bytes:
    return random.Random(7).randbytes(size)


@pytest.mark.parametrize(
    "make",
    [
        zeros,
        digits_only,
        markers_only,
        noise,
        *(tokens_behind(one) for one in (zeros, markers_only, counts_and_markers, noise)),
    ],
)
def test_an_image_of_look_alikes_is_given_up_within_bounds(make: Callable[[int], bytes]) -> None:
    searched = image(make(16 * MIB), TABLES)
    with cpu_seconds(60), pytest.raises(CorruptTable):
        search_tables(searched)


def test_names_of_many_look_alike_markers_are_given_up_within_bounds() -> None:
    built = built_form("6.12", COUNT)
    markers = built.data[built.at["markers"] - built.start :][:8] + bytes([0xFF]) * 8
    data = built.data[: built.at["markers"] - built.start] + markers * (8 * MIB // 16)
    at = built.at
    known = KnownTables(Va(at["names"]), built.count, Va(at["token_table"]), Va(at["token_index"]))
    with cpu_seconds(30), pytest.raises(CorruptTable):
        complete_tables(image(data), known)


def test_a_huge_table_of_huge_names_keeps_small() -> None:
    """A million names are claimed, and all tokens are as long as one may be."""
    lines = plain_lines(2000, start=TEXT)
    built = build_kallsyms(lines, start=TABLES)
    memory = TableMemory(built)
    index = built.at["token_index"] - built.start
    table = built.at["token_table"] - built.start
    memory.data[index : index + 512] = bytes(512)
    memory.data[table : table + 511] = b"z" * 510 + b"\0"
    with cpu_seconds(30), peak_mib(64), pytest.raises(CorruptTable):
        list(Kallsyms(memory.read, tables_of(built)).symbols())
