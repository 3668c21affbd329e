"""The names of BTF, by offset and back."""

import pytest

from qvmi.errors import CorruptTable
from qvmi.symbols.btf_strings import MAX_NAME, BtfStrings

KERNEL = BtfStrings(b"\0int\0task_struct\0", None)
MODULE = BtfStrings(b"own\0", KERNEL)


@pytest.mark.parametrize(
    ("offset", "name"), [(0, ""), (1, "int"), (5, "task_struct"), (10, "struct")]
)
def test_a_name_is_read_from_any_of_its_characters(offset: int, name: str) -> None:
    assert KERNEL.at(offset) == name


def test_a_modules_names_go_on_behind_the_kernels() -> None:
    assert (MODULE.at(17), MODULE.at(5), MODULE.size) == ("own", "task_struct", 21)


@pytest.mark.parametrize("offset", [17, 18, 1 << 32, -1])
def test_an_offset_beyond_all_names_is_refused(offset: int) -> None:
    with pytest.raises(CorruptTable, match=f"no name at {offset}"):
        KERNEL.at(offset)


def test_a_name_without_an_end_is_refused() -> None:
    with pytest.raises(CorruptTable):
        BtfStrings(b"\0open", None).at(1)


@pytest.mark.parametrize(("length", "refused"), [(MAX_NAME - 1, False), (MAX_NAME, True)])
def test_a_name_longer_than_the_kernel_has_is_refused(length: int, *, refused: bool) -> None:
    strings = BtfStrings(b"\0" + b"x" * length + b"\0", None)
    if refused:
        with pytest.raises(CorruptTable):
            strings.at(1)
    else:
        assert strings.at(1) == "x" * length


@pytest.mark.parametrize(
    ("name", "offset"), [("int", 1), ("task_struct", 5), ("own", 17), ("struct", None), ("", 0)]
)
def test_a_name_is_found_whole_or_not(name: str, offset: int | None) -> None:
    assert MODULE.offset_of(name) == offset


@pytest.mark.parametrize(
    ("offset", "begins"), [(0, True), (1, True), (2, False), (5, True), (99, False)]
)
def test_tells_where_a_name_begins(offset: int, *, begins: bool) -> None:
    assert KERNEL.begins_at(offset) is begins


def test_the_first_byte_of_a_modules_own_names_begins_one() -> None:
    assert MODULE.begins_at(17)
    assert not MODULE.begins_at(18)
