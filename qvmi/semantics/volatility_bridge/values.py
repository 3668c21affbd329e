"""Volatility's cells as plain Python values, which hold on to nothing of the guest."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final

from volatility3.framework import interfaces, renderers
from volatility3.framework.renderers import format_hints

from qvmi.semantics.volatility_bridge.table import Value, VolatilityRow

__all__ = ["canonical", "column_names", "plain_rows"]

_ADDRESS_BITS: Final = 64


def column_names(grid: Any) -> tuple[str, ...]:
    """These are the columns' names; one that comes again gets a number."""
    names: dict[str, None] = {}
    for column in grid.columns:
        name, number = str(column.name), 2
        while name in names:
            name = f"{column.name}_{number}"
            number += 1
        names[name] = None
    return tuple(names)


def plain_rows(grid: Any, kernel_bits: int) -> tuple[VolatilityRow, ...]:
    """These are the rows of a grid that was filled.

    Args:
        grid: of a plugin.
        kernel_bits: how many bits the addresses of the kernel's layer have.
    """
    names = column_names(grid)
    rows: list[VolatilityRow] = []

    def take(node: Any, _accumulator: object) -> None:
        cells = (_plain(value, kernel_bits) for value in node.values)
        rows.append(VolatilityRow(node.path_depth - 1, dict(zip(names, cells, strict=True))))

    grid.visit(None, take, None)
    return tuple(rows)


def canonical(value: int, bits: int) -> int:
    """This is an address of the kernel's half with the upper bits that Volatility cut off."""
    if value >> (bits - 1) == 1:
        return value | (1 << _ADDRESS_BITS) - (1 << bits)
    return value


def _plain(value: object, kernel_bits: int) -> Value:
    for kind, convert in _CONVERSIONS:
        if isinstance(value, kind):
            return convert(value, kernel_bits)
    return str(value)


def _layer_data(data: Any) -> bytes:
    found: bytes = data.context.layers[data.layer_name].read(data.offset, data.length, True)
    return found


_CONVERSIONS: Final[Sequence[tuple[type, Callable[[Any, int], Value]]]] = (
    (interfaces.renderers.BaseAbsentValue, lambda _value, _bits: None),
    (bool, lambda value, _bits: bool(value)),
    (format_hints.Hex, lambda value, bits: canonical(int(value), bits)),
    (int, lambda value, _bits: int(value)),
    (float, lambda value, _bits: float(value)),
    (str, lambda value, _bits: str(value)),
    (bytes, lambda value, _bits: bytes(value)),
    (datetime, lambda value, _bits: value),
    (renderers.Disassembly, lambda value, _bits: bytes(value.data)),
    (renderers.LayerData, lambda value, _bits: _layer_data(value)),
)
"""In this order: a truth value is an integer, too."""
