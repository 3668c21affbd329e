"""Symbols and layouts that a test has written down itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qvmi.addr import Va
from qvmi.symbols.layout import Field, NearestSymbol

__all__ = ["KnownSymbols"]

Layouts = Mapping[str, tuple[int, Mapping[str, int]]]


@dataclass
class KnownSymbols:
    """This answers from two tables. It is a :class:`~qvmi.symbols.layout.Symbols`.

    Attributes:
        layouts: size and member offsets, in bytes, by type.
        addresses: by name.
        enums: values by enumeration and name.
    """

    layouts: Layouts
    addresses: dict[str, int] = field(default_factory=dict)
    enums: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def find(self, name: str) -> Va | None:
        found = self.addresses.get(name)
        return None if found is None else Va(found)

    def find_field(self, type_name: str, names: Sequence[str]) -> Field | None:
        _, members = self.layouts.get(type_name, (0, {}))
        return next((Field(name, members[name]) for name in names if name in members), None)

    def size_of(self, type_name: str) -> int | None:
        return self.layouts[type_name][0] if type_name in self.layouts else None

    def find_enumerator(self, type_name: str, name: str) -> int | None:
        return self.enums.get(type_name, {}).get(name)

    def nearest(self, va: Va) -> NearestSymbol | None:
        before = [(at, name) for name, at in self.addresses.items() if at <= va]
        if not before:
            return None
        at, name = max(before)
        return NearestSymbol(name, Va(at), "D", "")
