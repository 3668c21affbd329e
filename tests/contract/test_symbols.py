"""What every implementation of Symbols must do, whether the guest or a file is asked."""

from collections.abc import Callable
from pathlib import Path

import pytest

from qvmi.addr import Va
from qvmi.errors import CorruptTable, LayoutNotFound, SymbolNotFound
from qvmi.symbols.isf import write_isf
from qvmi.symbols.isf_file import IsfFile, IsfSymbols
from qvmi.symbols.layout import Field, Symbols, address, field, field_offset
from tests.unit.symbols.small_kernel import BANNER, LINK_START, SmallKernel

SLIDE = 0x1C00_0000
START = LINK_START + SLIDE


def live(_: Path) -> Symbols:
    return SmallKernel(slide=SLIDE).live()


def file(folder: Path) -> Symbols:
    """The file is made where KASLR put the kernel elsewhere, as by another run of it."""
    kernel = SmallKernel(slide=0x800_0000)
    path = folder / "guest.json"
    write_isf(kernel.live(), path, slide=kernel.slide, banner=BANNER)
    read = IsfFile.read(path)
    return IsfSymbols(read, slide=read.slide(Va(START)))


MAKERS: dict[str, Callable[[Path], Symbols]] = {"live": live, "file": file}


@pytest.fixture(params=MAKERS)
def symbols(request: pytest.FixtureRequest, tmp_path: Path) -> Symbols:
    return MAKERS[request.param](tmp_path)


@pytest.mark.parametrize(
    ("name", "offset"), [("_text", 0), ("schedule", 0x100), ("linux_banner", 0x8000)]
)
def test_a_symbol_is_where_it_is_now(symbols: Symbols, name: str, offset: int) -> None:
    assert symbols.find(name) == START + offset


def test_an_offset_into_per_cpu_areas_is_not_moved(symbols: Symbols) -> None:
    assert symbols.find("runqueues") == 0x1F80


def test_of_two_symbols_of_one_name_it_is_the_lower_one(symbols: Symbols) -> None:
    assert symbols.find("twice") == START + 0x140


@pytest.mark.parametrize("name", ["", "schedul", "schedule_", "Schedule", "\xff", "\udcff"])
def test_a_name_that_the_kernel_lacks_is_none(symbols: Symbols, name: str) -> None:
    assert symbols.find(name) is None
    with pytest.raises(SymbolNotFound):
        address(symbols, name)


@pytest.mark.parametrize(
    ("type_name", "names", "found"),
    [
        ("task_struct", ["pid"], Field("pid", 0)),
        ("task_struct", ["state", "__state"], Field("__state", 4)),
        ("task_struct", ["__state", "pid"], Field("__state", 4)),
        ("task_struct", ["comm"], Field("comm", 16)),
        ("task_struct", ["parent"], Field("parent", 32)),
        ("rq", ["nr_running"], Field("nr_running", 0)),
    ],
)
def test_the_first_member_that_a_struct_has_is_found(
    symbols: Symbols, type_name: str, names: list[str], found: Field
) -> None:
    assert symbols.find_field(type_name, names) == found


@pytest.mark.parametrize(
    ("name", "offset"), [("both", 8), ("first", 8), ("second", 12)], ids=["one", "two", "three"]
)
def test_members_of_anonymous_structs_and_unions_are_the_structs_own(
    symbols: Symbols, name: str, offset: int
) -> None:
    assert symbols.find_field("task_struct", [name]) == Field(name, offset)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("low", Field("low", 0, 0, 3)),
        ("high", Field("high", 0, 3, 7)),
        ("last", Field("last", 3, 7, 1)),
    ],
)
def test_a_bit_field_tells_its_byte_and_its_bits(symbols: Symbols, name: str, found: Field) -> None:
    assert symbols.find_field("flags", [name]) == found


@pytest.mark.parametrize(
    ("type_name", "names"),
    [
        ("task_struct", ["state"]),
        ("task_struct", ["", "unnamed_field_8"]),
        ("task_struct", []),
        ("tasks", ["pid"]),
        ("", ["pid"]),
        ("int", ["pid"]),
    ],
)
def test_an_unknown_type_or_member_is_none(
    symbols: Symbols, type_name: str, names: list[str]
) -> None:
    assert symbols.find_field(type_name, names) is None
    with pytest.raises(LayoutNotFound):
        field(symbols, type_name, *names)


@pytest.mark.parametrize(
    ("name", "size"), [("task_struct", 64), ("flags", 4), ("rq", 8), ("tasks", None), ("", None)]
)
def test_a_struct_has_its_size(symbols: Symbols, name: str, size: int | None) -> None:
    assert symbols.size_of(name) == size


@pytest.mark.parametrize(
    ("type_name", "name", "value"),
    [
        ("pageflags", "PG_locked", 0),
        ("pageflags", "PG_head", 16),
        ("wide", "high", 1 << 40),
        ("pageflags", "PG_tail", None),
        ("task_struct", "pid", None),
        ("pageflag", "PG_head", None),
        ("", "PG_head", None),
        ("\udcff", "\xff", None),
    ],
)
def test_an_enumerator_has_its_value(
    symbols: Symbols, type_name: str, name: str, value: int | None
) -> None:
    for _ in range(2):
        assert symbols.find_enumerator(type_name, name) == value


@pytest.mark.parametrize(
    ("offset", "name", "at"),
    [
        (0, "_text", 0),
        (0xFF, "_text", 0),
        (0x100, "schedule", 0x100),
        (0x13F, "schedule", 0x100),
        (0x181, "twice", 0x140),
        (0x20000, "_end", 0x20000),
    ],
)
def test_the_nearest_symbol_is_the_one_at_or_before_an_address(
    symbols: Symbols, offset: int, name: str, at: int
) -> None:
    found = symbols.nearest(Va(START + offset))
    assert found is not None
    assert (found.name, found.module) == (name, "")
    assert found.address in {START + at, START + 0x180}


@pytest.mark.parametrize("va", [0, 0x1F80, 0x400000, START - 1, START + 0x20001, (1 << 64) - 1])
def test_nothing_is_near_outside_of_the_kernel(symbols: Symbols, va: int) -> None:
    assert symbols.nearest(Va(va)) is None


def test_a_struct_that_is_made_of_itself_is_refused(symbols: Symbols) -> None:
    assert field_offset(symbols, "endless", "never") == 0
    with pytest.raises(CorruptTable, match=r"endless|nest too deep"):
        symbols.find_field("endless", ["missing"])


def test_the_same_question_has_the_same_answer(symbols: Symbols) -> None:
    for _ in range(3):
        assert symbols.find("schedule") == START + 0x100
        assert symbols.find_field("task_struct", ["second"]) == Field("second", 12)
        assert symbols.find_field("task_struct", ["nothing"]) is None
        assert symbols.size_of("task_struct") == 64
