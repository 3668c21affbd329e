"""One name for each struct, union and enum of a kernel, also where C has none or gives it twice."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Final

from qvmi.symbols.btf import BtfKind
from qvmi.symbols.btf_table import BtfTable

__all__ = ["type_names"]

_MAX_CHAIN: Final = 16
"""Pointers, arrays and qualifiers in a row are a few; more are a loop, or a lie."""

_QUALIFIERS: Final = frozenset(
    {BtfKind.CONST, BtfKind.VOLATILE, BtfKind.RESTRICT, BtfKind.TYPE_TAG}
)


def type_names(table: BtfTable, text: Callable[[int], str]) -> dict[int, str]:
    """This names every struct, union and enum by its type id.

    Structs and unions share one namespace, enums have another. Of several types of one name the
    one that is referred to most keeps it, else the first; the others get a number. An anonymous
    type takes the name of its typedef if that is free.

    Args:
        table: all types of a kernel.
        text: gives the name at an offset.
    """
    uses = _Uses(table)
    compounds = sorted(table.ids(BtfKind.STRUCT, BtfKind.UNION))
    enums = sorted(table.ids(BtfKind.ENUM, BtfKind.ENUM64))
    typedefs = _typedef_names(table)

    def names(ids: Iterable[int]) -> dict[int, str]:
        tags = {type_id: text(table.name(type_id)) for type_id in ids}
        found = _tagged_names(tags, uses)
        taken = set(found.values())
        for type_id, tag in tags.items():
            if not tag:
                name = text(typedefs.get(type_id, 0))
                found[type_id] = name if name and name not in taken else f"unnamed_{type_id:x}"
                taken.add(found[type_id])
        return found

    return names(compounds) | names(enums)


def _tagged_names(tags: dict[int, str], uses: "_Uses") -> dict[int, str]:
    """This names the types that have a tag in C."""
    by_tag: defaultdict[str, list[int]] = defaultdict(list)
    for type_id, tag in tags.items():
        if tag:
            by_tag[tag].append(type_id)
    names = {ids[0]: tag for tag, ids in by_tag.items()}
    several = {tag: ids for tag, ids in by_tag.items() if len(ids) > 1}
    counts = uses.of(type_id for ids in several.values() for type_id in ids)
    taken = set(by_tag)
    for tag, ids in several.items():
        kept = max(ids, key=lambda one: (counts[one], -one))
        for type_id in ids:
            names[type_id] = tag if type_id == kept else _free_name(tag, taken)
    return names


def _free_name(name: str, taken: set[str]) -> str:
    """This numbers a name so that no other type has it."""
    number = 2
    while f"{name}__{number}" in taken:
        number += 1
    taken.add(f"{name}__{number}")
    return f"{name}__{number}"


def _typedef_names(table: BtfTable) -> dict[int, int]:
    """This is the name's offset of the first typedef of every type that has one."""
    names: dict[int, int] = {}
    for typedef in table.ids(BtfKind.TYPEDEF):
        target = table.size_or_type(typedef)
        for _ in range(_MAX_CHAIN):
            if target >= len(table) or table.kinds[target] not in _QUALIFIERS:
                break
            target = table.size_or_type(target)
        names.setdefault(target, table.name(typedef))
    return names


class _Uses:
    """This counts how often types are referred to, for those that are asked about."""

    def __init__(self, table: BtfTable) -> None:
        self._table = table

    def of(self, wanted: Iterable[int]) -> Counter[int]:
        """This counts the members, variables, parameters and results that are about each type."""
        leads_to = self._leads_to(wanted)
        counts: Counter[int] = Counter()
        for type_id, target in leads_to.items():
            counts[target] += self._named[type_id]
        return counts

    @cached_property
    def _named(self) -> Counter[int]:
        """How often each type is named, pointers and qualifiers being types of their own."""
        table = self._table
        named = [table.size_or_type(variable) for variable in table.ids(BtfKind.VAR)]
        for compound in table.ids(BtfKind.STRUCT, BtfKind.UNION):
            named += table.behind(compound, 3)[1::3]
        for function in table.ids(BtfKind.FUNC_PROTO):
            named.append(table.size_or_type(function))
            named += table.behind(function, 2)[1::2]
        return Counter(named)

    @cached_property
    def _links(self) -> list[tuple[int, int]]:
        """Every pointer, array, typedef and qualifier with the type it is of."""
        table = self._table
        leading = table.ids(BtfKind.PTR, BtfKind.TYPEDEF, *_QUALIFIERS)
        links = [(type_id, table.size_or_type(type_id)) for type_id in leading]
        arrays = table.ids(BtfKind.ARRAY)
        return links + [(type_id, table.behind(type_id, 1, 1)[0]) for type_id in arrays]

    def _leads_to(self, wanted: Iterable[int]) -> dict[int, int]:
        """This maps to each of the wanted types itself and all that lead to it."""
        found = {type_id: type_id for type_id in wanted}
        for _ in range(_MAX_CHAIN):
            before = len(found)
            for type_id, target in self._links:
                if target in found:
                    found.setdefault(type_id, found[target])
            if len(found) == before:
                break
        return found
