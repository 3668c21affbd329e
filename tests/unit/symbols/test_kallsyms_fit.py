"""Fitting the other tables to those that VMCOREINFO names."""

from dataclasses import replace

import pytest

from qvmi.addr import Va
from qvmi.errors import CorruptTable, MemoryFault
from qvmi.symbols.kallsyms_fit import MIN_SYMBOLS, ImageBytes, KnownTables, complete_tables
from tests.synthetic.kallsyms import BuiltKallsyms
from tests.unit.symbols.kallsyms_forms import FORMS, TEXT, built_form, tables_of

COUNT = MIN_SYMBOLS + 300
IMAGE_END = 0xFFFF_FFFF_8300_0000


def image(built: BuiltKallsyms) -> ImageBytes:
    return ImageBytes(Va(built.start), built.data, Va(TEXT - 0x1000), Va(IMAGE_END))


def known(built: BuiltKallsyms) -> KnownTables:
    at = built.at
    return KnownTables(Va(at["names"]), built.count, Va(at["token_table"]), Va(at["token_index"]))


@pytest.mark.parametrize("form", FORMS)
def test_the_other_tables_are_found_by_those_known(form: str) -> None:
    built = built_form(form, COUNT)
    assert complete_tables(image(built), known(built)) == tables_of(built, FORMS[form].addressing)


@pytest.mark.parametrize(
    "count", [-1, 0, 1, 255, 256, 257, COUNT - 256, COUNT + 256, 1 << 31, 1 << 32]
)
def test_a_number_of_symbols_that_is_not_theirs_is_refused(count: int) -> None:
    built = built_form("6.1", COUNT)
    with pytest.raises(CorruptTable):
        complete_tables(image(built), replace(known(built), count=count))


@pytest.mark.parametrize("names", [0, TEXT, -1, (1 << 64) - 1])
def test_names_that_lie_elsewhere_are_refused(names: int) -> None:
    built = built_form("6.1", COUNT)
    with pytest.raises(CorruptTable, match="kallsyms_names"):
        complete_tables(image(built), replace(known(built), names=Va(names)))


@pytest.mark.parametrize("place", [0, TEXT, -1, (1 << 64) - 1])
@pytest.mark.parametrize("table", ["token_table", "token_index"])
def test_tokens_that_lie_elsewhere_are_refused(table: str, place: int) -> None:
    built = built_form("6.12", COUNT)
    moved = replace(built, at=built.at | {table: place})
    with pytest.raises(CorruptTable):
        complete_tables(image(built), known(moved))


@pytest.mark.parametrize(("va", "size"), [(TEXT, 1), (-1, 1), (0, -1)])
def test_a_copied_image_faults_outside_of_itself(va: int, size: int) -> None:
    with pytest.raises(MemoryFault):
        image(built_form("6.1", COUNT)).read(Va(va), size)
