"""Asking for what must be there."""

from collections.abc import Sequence

import pytest

from qvmi.addr import Va
from qvmi.errors import LayoutNotFound, SymbolNotFound
from qvmi.symbols.layout import Field, NearestSymbol, address, enumerator, field, field_offset


class OneOfEach:
    """A kernel with one symbol and one struct of one member."""

    def find(self, name: str) -> Va | None:
        return Va(0x1000) if name == "init_task" else None

    def find_field(self, type_name: str, names: Sequence[str]) -> Field | None:
        known = type_name == "task_struct" and "comm" in names
        return Field("comm", 1472) if known else None

    def size_of(self, type_name: str) -> int | None:
        return 9792 if type_name == "task_struct" else None

    def find_enumerator(self, type_name: str, name: str) -> int | None:
        return 16 if (type_name, name) == ("pageflags", "PG_head") else None

    def nearest(self, va: Va) -> NearestSymbol | None:
        return NearestSymbol("init_task", Va(0x1000), "D", "") if va >= 0x1000 else None


def test_what_is_there_is_given() -> None:
    kernel = OneOfEach()
    assert address(kernel, "init_task") == 0x1000
    assert field(kernel, "task_struct", "command", "comm") == Field("comm", 1472)
    assert field_offset(kernel, "task_struct", "comm") == 1472


def test_a_missing_symbol_is_named() -> None:
    with pytest.raises(SymbolNotFound, match="'modules'") as caught:
        address(OneOfEach(), "modules")
    assert caught.value.name == "modules"


def test_a_missing_member_is_named_with_all_its_alternatives() -> None:
    with pytest.raises(LayoutNotFound, match="__state") as caught:
        field(OneOfEach(), "task_struct", "__state", "state")
    assert (caught.value.type_name, caught.value.field) == ("task_struct", "__state|state")


def test_a_missing_enumerator_is_named() -> None:
    assert enumerator(OneOfEach(), "pageflags", "PG_head") == 16
    with pytest.raises(LayoutNotFound, match="PG_tail") as caught:
        enumerator(OneOfEach(), "pageflags", "PG_tail")
    assert (caught.value.type_name, caught.value.field) == ("pageflags", "PG_tail")
