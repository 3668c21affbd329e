"""Finding the tables by their form alone, wherever they lie and whatever lies around them."""

import random
from functools import cache

import pytest

from qvmi.addr import Va
from qvmi.errors import CorruptTable
from qvmi.symbols.kallsyms import Kallsyms
from qvmi.symbols.kallsyms_fit import MIN_SYMBOLS, ImageBytes
from qvmi.symbols.kallsyms_search import search_tables
from tests.synthetic.kallsyms import BuiltKallsyms, Line, build_kallsyms, plain_lines
from tests.unit.symbols.kallsyms_forms import FORMS, TABLES, TEXT, built_form, tables_of

COUNT = MIN_SYMBOLS + 300
IMAGE_END = 0xFFFF_FFFF_8300_0000


@cache
def noise(size: int) -> bytes:
    """Bytes as around the tables: numbers, text and zeros; the same ones in each run."""
    generator = random.Random(size)
    kinds = [b"\0" * 24, b"kernel/sched/core.c\0", b"0\0001\0002\0003\0", b"\x00\x02\x00\x00"]
    data = b"".join(
        generator.choice(kinds) + generator.randbytes(generator.randrange(16))
        for _ in range(size // 16)
    )
    return data[: size & ~7]


def image(built: BuiltKallsyms, *, before: bytes = b"", behind: bytes = b"") -> ImageBytes:
    """The tables with bytes on both sides, in an image that reaches beyond them."""
    start = Va(built.start - len(before))
    return ImageBytes(start, before + built.data + behind, Va(TEXT - 0x1000), Va(IMAGE_END))


def found_as_built(built: BuiltKallsyms, form: str, searched: ImageBytes) -> bool:
    return search_tables(searched) == tables_of(built, FORMS[form].addressing)


forms = pytest.mark.parametrize("form", FORMS)


@forms
def test_the_tables_are_found_alone(form: str) -> None:
    built = built_form(form, COUNT)
    assert found_as_built(built, form, image(built))


@forms
@pytest.mark.parametrize("size", [0x1000, 0x8008, 0x20000])
def test_the_tables_are_found_among_other_bytes(form: str, size: int) -> None:
    built = built_form(form, COUNT)
    searched = image(built, before=noise(size), behind=noise(size + 8))
    assert found_as_built(built, form, searched)


@forms
@pytest.mark.parametrize("extra", [0, 1, 128, 255])
def test_the_tables_are_found_for_each_length_of_the_last_block(form: str, extra: int) -> None:
    built = built_form(form, MIN_SYMBOLS + extra)
    assert found_as_built(built, form, image(built, before=noise(0x1000), behind=noise(0x1000)))


def test_tables_aligned_to_four_are_found_at_a_place_not_aligned_to_eight() -> None:
    built = built_form("7.x", COUNT, TABLES + 4)
    assert found_as_built(built, "7.x", image(built, before=noise(0x1000), behind=noise(0x1000)))


@pytest.mark.parametrize("form", ["6.1", "6.12", "7.x"])
def test_names_of_two_length_bytes_are_found_out(form: str) -> None:
    lines = [
        Line(TEXT + 16 * n, "t", f"long_{n}_" + "abcdefgh" * 30) if n % 50 == 7 else line
        for n, line in enumerate(plain_lines(COUNT, start=TEXT))
    ]
    built = build_kallsyms(lines, start=TABLES, order=FORMS[form].order)
    assert found_as_built(built, form, image(built))


def test_old_names_with_bit_seven_in_their_length_are_found_out() -> None:
    lines = [
        Line(TEXT + 16 * n, "t", f"long_{n}_" + "abcdefgh" * 16) if n % 50 == 7 else line
        for n, line in enumerate(plain_lines(COUNT, start=TEXT))
    ]
    built = build_kallsyms(lines, start=TABLES, order="old", seqs=False, long_names=False)
    found = search_tables(image(built))
    assert found == tables_of(built, long_names=False)


@forms
def test_what_is_found_answers_for_names(form: str) -> None:
    built = built_form(form, COUNT)
    searched = image(built, before=noise(0x1000), behind=noise(0x1000))
    kallsyms = Kallsyms(searched.read, search_tables(searched))
    assert kallsyms.find("_end") == TEXT + 16 * COUNT


def test_zeros_in_the_place_of_the_alphabetical_index_are_no_index() -> None:
    built = built_form("5.10", COUNT)
    lines = plain_lines(COUNT, start=TEXT)
    without = build_kallsyms(lines, start=TABLES, order="new", seqs=False)
    assert search_tables(image(without, behind=bytes(4 * COUNT))).seqs_of_names == 0
    assert search_tables(image(built, behind=bytes(4 * COUNT))).seqs_of_names == 0


# ------------------------------------------------------------------------------------------ nothing to find


def test_without_tokens_it_says_so() -> None:
    with pytest.raises(CorruptTable, match="no table of tokens"):
        search_tables(ImageBytes(Va(TEXT), noise(0x20000), Va(TEXT), Va(IMAGE_END)))


def test_an_image_cut_off_before_the_names_has_none() -> None:
    built = built_form("6.1", COUNT)
    cut = built.at["markers"] + 8 - built.start
    searched = ImageBytes(Va(built.start + cut), built.data[cut:], Va(TEXT), Va(IMAGE_END))
    with pytest.raises(CorruptTable, match="no table of names"):
        search_tables(searched)


@pytest.mark.parametrize("form", ["6.12", "7.x"])
def test_an_image_cut_off_behind_the_tokens_has_no_offsets(form: str) -> None:
    built = built_form(form, COUNT)
    cut = built.at["offsets"] + 64 - built.start
    searched = ImageBytes(Va(built.start), built.data[:cut], Va(TEXT), Va(IMAGE_END))
    with pytest.raises(CorruptTable, match="kallsyms_offsets"):
        search_tables(searched)


def test_offsets_that_lead_out_of_the_image_do_not_fit() -> None:
    built = built_form("6.12", COUNT)
    elsewhere = ImageBytes(
        Va(built.start), built.data, Va(0xFFFF_FFFF_A000_0000), Va(0xFFFF_FFFF_A100_0000)
    )
    with pytest.raises(CorruptTable, match="kallsyms_offsets"):
        search_tables(elsewhere)


def test_fewer_symbols_than_any_kernel_has_are_no_kernels() -> None:
    built = build_kallsyms(plain_lines(600, start=TEXT), start=TABLES)
    with pytest.raises(CorruptTable):
        search_tables(image(built))


DIGITS = b"".join(b"%d\0" % digit for digit in range(10))


@pytest.mark.parametrize("data", [b"", b"\0", bytes(4096), DIGITS, DIGITS * 100])
def test_an_image_with_nothing_in_it_has_no_tables(data: bytes) -> None:
    with pytest.raises(CorruptTable):
        search_tables(ImageBytes(Va(TEXT), data, Va(TEXT), Va(IMAGE_END)))
