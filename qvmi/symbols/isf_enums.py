"""A kernel's enumerations as those of an ISF file.

References: Linux Documentation/bpf/btf.rst, sections 2.2.6 (ENUM) and 2.2.19 (ENUM64).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from qvmi.symbols.btf import BtfKind
from qvmi.symbols.btf_table import BtfTable
from qvmi.symbols.isf_schema import Enum

__all__ = ["kernel_enums"]

_ENUM_WORDS: Final = 2
_ENUM64_WORDS: Final = 3
_WORD_BITS: Final = 32

_BASES: Final = {
    # (bytes, signed): the base type that such an enumeration is stored as
    (1, True): "signed char",
    (1, False): "unsigned char",
    (2, True): "short int",
    (2, False): "short unsigned int",
    (4, True): "int",
    (4, False): "unsigned int",
    (8, True): "long int",
    (8, False): "long unsigned int",
}


def kernel_enums(
    table: BtfTable, names: Mapping[int, str], text: Callable[[int], str]
) -> dict[str, Enum]:
    """This converts all enumerations.

    Whether the values are signed is told since Linux 6.0. In older BTF, where it never is, they
    are where one of them is below zero.

    Args:
        table: all types of a kernel.
        names: of its enumerations, by type id.
        text: gives the name at an offset.
    """
    narrow, wide = table.ids(BtfKind.ENUM), table.ids(BtfKind.ENUM64)
    is_told = bool(wide) or any(map(table.kind_flag, narrow))
    enums: dict[str, Enum] = {}
    for type_id in narrow:
        words = table.behind(type_id, _ENUM_WORDS)
        values = words[1::_ENUM_WORDS]
        below_zero = any(value >> (_WORD_BITS - 1) for value in values)
        signed = table.kind_flag(type_id) or (below_zero and not is_told)
        constants = _constants(map(text, words[::_ENUM_WORDS]), values, _WORD_BITS, signed=signed)
        enums[names[type_id]] = _enum(table.size_or_type(type_id), constants, signed=signed)
    for type_id in wide:
        words = table.behind(type_id, _ENUM64_WORDS)
        halves = zip(words[1::_ENUM64_WORDS], words[2::_ENUM64_WORDS], strict=True)
        values64 = (low | high << _WORD_BITS for low, high in halves)
        signed = table.kind_flag(type_id)
        texts = map(text, words[::_ENUM64_WORDS])
        constants = _constants(texts, values64, 2 * _WORD_BITS, signed=signed)
        enums[names[type_id]] = _enum(table.size_or_type(type_id), constants, signed=signed)
    return enums


def _constants(
    texts: Iterable[str], values: Iterable[int], bits: int, *, signed: bool
) -> dict[str, int]:
    sign = 1 << (bits - 1) if signed else 0
    return {text: value - 2 * (value & sign) for text, value in zip(texts, values, strict=True)}


def _enum(size: int, constants: dict[str, int], *, signed: bool) -> Enum:
    return Enum(size, _BASES.get((size, signed), "int"), constants)
