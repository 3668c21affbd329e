"""Enumerations and variables of a BTF, found by their names."""

from typing import Final

from qvmi.symbols.btf import Btf, BtfKind

__all__ = ["enumerators", "variable_type"]

_EACH: Final = 2
"""Words of one enumerator: the offset of its name, its value."""


def enumerators(btf: Btf, name: str) -> dict[int, str]:
    """These are the names of the values of an enumeration of up to 32 bits.

    Returns:
        Nothing where there is none of that name.

    Raises:
        CorruptTable: the types contradict themselves.
    """
    table, wanted = btf.table(), btf.strings.offset_of(name)
    for type_id in table.ids(BtfKind.ENUM):
        if wanted and table.name(type_id) == wanted and table.vlen(type_id):
            words = table.behind(type_id, _EACH)
            values = words[1::_EACH], map(btf.string, words[::_EACH])
            return dict(zip(*values, strict=True))
    return {}


def variable_type(btf: Btf, name: str) -> int | None:
    """This is the id of a variable's type, None where the BTF does not tell of it.

    Raises:
        CorruptTable: the types contradict themselves.
    """
    table, wanted = btf.table(), btf.strings.offset_of(name)
    for type_id in table.ids(BtfKind.VAR):
        if wanted and table.name(type_id) == wanted:
            return table.size_or_type(type_id)
    return None
