"""Questions to the kernel's symbol table, in every form it has had."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvmi.addr import Va
from qvmi.errors import CorruptTable, MemoryFault
from qvmi.symbols.kallsyms import (
    MAX_NAME,
    MAX_SYMBOLS,
    Kallsyms,
    KernelSymbol,
    names_end,
)
from tests.synthetic.kallsyms import Line, build_kallsyms
from tests.unit.symbols.kallsyms_forms import (
    FORMS,
    TABLES,
    TEXT,
    TableMemory,
    built_form,
    lines_of,
    tables_of,
)

TABLE_NAMES = ["names", "markers", "token_table", "token_index", "offsets", "seqs_of_names"]
END = lines_of("6.1")[-1].address


def kallsyms_of(form: str) -> tuple[Kallsyms, list[Line]]:
    built = built_form(form)
    tables = tables_of(built, FORMS[form].addressing)
    return Kallsyms(TableMemory(built).read, tables), lines_of(form)


forms = pytest.mark.parametrize("form", FORMS)


# --------------------------------------------------------------------------------------------- all of it


@forms
def test_every_line_is_told_in_the_kernels_order(form: str) -> None:
    kallsyms, lines = kallsyms_of(form)
    assert list(kallsyms.symbols()) == [
        KernelSymbol(Va(one.address), one.type, one.name) for one in lines
    ]


@forms
def test_the_number_of_symbols_is_known_without_decoding_them(form: str) -> None:
    kallsyms, lines = kallsyms_of(form)
    assert len(kallsyms) == len(lines)


@forms
@pytest.mark.parametrize("index", [0, 1, 255, 256, 257, 511, 512, -1])
def test_a_symbol_is_told_by_its_number_alone(form: str, index: int) -> None:
    kallsyms, lines = kallsyms_of(form)
    number = index % len(lines)
    line = lines[number]
    assert kallsyms.at(number) == KernelSymbol(Va(line.address), line.type, line.name)
    assert kallsyms.name_at(number) == line.name.encode()


# ---------------------------------------------------------------------------------------------- one name


@forms
def test_every_name_leads_to_its_first_address(form: str) -> None:
    kallsyms, lines = kallsyms_of(form)
    first: dict[str, int] = {}
    for line in lines:
        first.setdefault(line.name, line.address)
    assert {name: kallsyms.find(name) for name in first} == first


@forms
@pytest.mark.parametrize(
    "name", ["", "a", "~", "symbol_", "symbol_0000001_of_1", "_texT", "x" * 600, "\ud800", "naïve"]
)
def test_a_name_the_kernel_lacks_is_not_found(form: str, name: str) -> None:
    assert kallsyms_of(form)[0].find(name) is None


def test_where_there_is_an_index_no_other_name_is_decoded() -> None:
    kallsyms, lines = kallsyms_of("6.1")
    kallsyms.find(lines[300].name)
    assert "_texts" not in vars(kallsyms)


# -------------------------------------------------------------------------------------------- one address


@forms
@pytest.mark.parametrize(
    ("va", "name"),
    [
        (TEXT - 0x21, None),
        (TEXT - 0x20, "_stext"),
        (TEXT - 0x11, "_stext"),
        (TEXT - 1, "x"),
        (END, "_end"),
        (END + 1, None),
        (0xFFFF_8880_0000_0000, None),
        ((1 << 64) - 1, None),
    ],
)
def test_the_nearest_symbol_is_the_first_at_or_before(form: str, va: int, name: str | None) -> None:
    found = kallsyms_of(form)[0].nearest(Va(va))
    assert (found and found.name) == name


@pytest.mark.parametrize("va", [0, 0x1000, 0x5000, 0x7FFF_FFFF_F000])
def test_per_cpu_offsets_are_no_addresses_of_programs(va: int) -> None:
    assert kallsyms_of("6.1")[0].nearest(Va(va)) is None


# --------------------------------------------------------------------------------------------- long names


@pytest.mark.parametrize("characters", [127, 128, 129, 300, MAX_NAME - 1])
def test_a_long_name_has_two_bytes_of_length(characters: int) -> None:
    lines = [Line(TEXT, "t", "q" * (characters - 1)), Line(TEXT + 8, "T", "next")]
    built = build_kallsyms(lines, start=TABLES)
    kallsyms = Kallsyms(TableMemory(built).read, tables_of(built))
    assert [one.name for one in kallsyms.symbols()] == ["q" * (characters - 1), "next"]
    assert kallsyms.find("next") == TEXT + 8


def test_without_long_names_bit_seven_is_a_part_of_the_length() -> None:
    lines = [Line(TEXT, "t", "q" * 199), Line(TEXT + 8, "T", "next")]
    built = build_kallsyms(lines, start=TABLES, long_names=False)
    kallsyms = Kallsyms(TableMemory(built).read, tables_of(built, long_names=False))
    assert kallsyms.at(1).name == "next"


def test_names_end_where_the_next_thing_begins() -> None:
    names = bytes([2, 1, 1, 1, 9, 0x80, 1, *[7] * 128, 0])
    assert [names_end(names, 0, n, long_names=True) for n in range(5)] == [0, 3, 5, 135, 136]


name_characters = st.characters(min_codepoint=0x21, max_codepoint=0x7E)
some_lines = st.lists(
    st.tuples(st.sampled_from("tTdDrRbBaAwW"), st.text(name_characters, min_size=1, max_size=200)),
    min_size=1,
    max_size=600,
)


@given(some_lines, st.sampled_from([form for form in FORMS if form != "6.12 of arm64"]))
def test_whatever_is_written_is_read(pairs: list[tuple[str, str]], form: str) -> None:
    wanted = FORMS[form]
    lines = [Line(TEXT + 4 * n, kind, name) for n, (kind, name) in enumerate(pairs)]
    built = build_kallsyms(lines, start=TABLES, order=wanted.order, seqs=wanted.seqs)
    kallsyms = Kallsyms(TableMemory(built).read, tables_of(built, wanted.addressing))
    assert [(one.address, one.type, one.name) for one in kallsyms.symbols()] == [
        (line.address, line.type, line.name) for line in lines
    ]
    assert kallsyms.find(lines[-1].name) == min(
        line.address for line in lines if line.name == lines[-1].name
    )


# ----------------------------------------------------------------------------------- what contradicts itself


def broken(table: str, offset: int, data: bytes, form: str = "6.1") -> Kallsyms:
    built = built_form(form)
    memory = TableMemory(built)
    at = built.at[table] - built.start + offset
    memory.data[at : at + len(data)] = data
    return Kallsyms(memory.read, tables_of(built, FORMS[form].addressing))


@pytest.mark.parametrize("count", [0, -1, MAX_SYMBOLS + 1, 1 << 32])
def test_an_impossible_number_of_symbols_is_refused(count: int) -> None:
    with pytest.raises(CorruptTable, match="kallsyms_num_syms"):
        replace(tables_of(built_form("6.1")), count=count)


@pytest.mark.parametrize("table", TABLE_NAMES)
@pytest.mark.parametrize("place", [0x1000, 0xFFFF_FFFF_FFFF_FFF0, -8])
def test_tables_outside_of_memory_are_refused(table: str, place: int) -> None:
    built = built_form("6.1")
    moved = replace(built, at=built.at | {table: place})
    with pytest.raises((CorruptTable, MemoryFault)):
        Kallsyms(TableMemory(built).read, tables_of(moved))


def test_token_offsets_that_fall_are_refused() -> None:
    with pytest.raises(CorruptTable, match="kallsyms_token_index"):
        broken("token_index", 100, b"\xff\xff")


def test_a_token_without_an_end_is_refused() -> None:
    built = built_form("6.1")
    memory = TableMemory(built)
    open_end = len(built.data)
    memory.data[open_end : open_end + 4000] = b"x" * 4000
    tables = replace(tables_of(built), token_table=Va(built.start + open_end))
    with pytest.raises(CorruptTable, match="kallsyms_token_table"):
        Kallsyms(memory.read, tables)


def test_a_marker_that_does_not_fit_its_name_is_refused() -> None:
    kallsyms = broken("markers", 4, b"\x01\x00")
    with pytest.raises(CorruptTable, match="kallsyms_markers"):
        list(kallsyms.symbols())


def test_a_marker_beyond_all_names_is_refused() -> None:
    kallsyms = broken("markers", 8, b"\xff\xff\xff\xff", form="7.x")
    with pytest.raises(CorruptTable, match="name 520 lies outside"):
        kallsyms.at(520)


def test_a_name_longer_than_the_kernel_has_is_refused() -> None:
    kallsyms = broken("names", 0, b"\xff\x7f")
    with pytest.raises(CorruptTable, match="tokens"):
        list(kallsyms.symbols())
    with pytest.raises(CorruptTable):
        kallsyms.at(1)


def test_names_that_expand_beyond_measure_are_refused() -> None:
    lines = [Line(TEXT + n, "t", "x" * 400) for n in range(300)]
    built = build_kallsyms(lines, start=TABLES)
    memory = TableMemory(built)
    index = built.at["token_index"] - built.start
    # Every code stands for the same token of 300 characters.
    memory.data[index : index + 512] = bytes(512)
    table = built.at["token_table"] - built.start
    memory.data[table : table + 301] = b"y" * 300 + b"\0"
    kallsyms = Kallsyms(memory.read, tables_of(built))
    with pytest.raises(CorruptTable, match="characters"):
        list(kallsyms.symbols())


def test_an_index_that_numbers_no_symbol_is_refused() -> None:
    kallsyms = broken("seqs_of_names", 0, b"\xff" * 3 * 600)
    with pytest.raises(CorruptTable, match="kallsyms_seqs_of_names"):
        kallsyms.find("_text")


def test_characters_that_are_no_ascii_are_escaped() -> None:
    kallsyms = broken("token_table", 0, b"\xff\xfe")
    assert all(one.name.isascii() for one in kallsyms.symbols())
