"""Symbols and types that Volatility is given and cannot use."""

from typing import Any

import pytest
from volatility3.framework.contexts import Context

from qvmi.errors import CorruptTable
from qvmi.semantics.volatility_bridge.symbol_table import KernelContent, add_symbol_table

INT = {"kind": "int", "size": 4, "signed": True, "endian": "little"}


def content(**sections: dict[str, Any]) -> KernelContent:
    """This is what an ISF file says that has hardly anything."""
    nothing: dict[str, dict[str, Any]] = {name: {} for name in ("user_types", "enums", "symbols")}
    return KernelContent(
        {"metadata": {"format": "6.2.0"}, "base_types": {"int": INT}, **nothing, **sections}
    )


@pytest.mark.parametrize(
    "sections",
    [
        {},  # Volatility gives methods to `struct file` and others, whether they are there or not
        {"user_types": {"file": {"kind": "struct", "size": 8}}},
        {"user_types": {"file": {"kind": "struct", "size": 8, "fields": []}}},
        {"metadata": {"format": "0.0.1"}},
        {"metadata": {"format": "x"}},
    ],
)
def test_what_volatility_cannot_use_is_an_error_of_ours(
    sections: dict[str, dict[str, Any]],
) -> None:
    with pytest.raises(CorruptTable, match="Volatility cannot use them: "):
        add_symbol_table(Context(), "kernel_symbols", content(**sections), mask=(1 << 48) - 1)
