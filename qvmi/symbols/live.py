"""Symbols of the running kernel, decoded from its own kallsyms and BTF as they are asked for."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Final

from qvmi.addr import Va
from qvmi.errors import CorruptTable, MemoryFault
from qvmi.symbols.btf import Btf, BtfKind, BtfMember, BtfType, btf_size
from qvmi.symbols.kallsyms import Kallsyms, KallsymsTables, ReadVirtual
from qvmi.symbols.layout import Field, NearestSymbol
from qvmi.symbols.profile import Profile, enumerator_key, field_key, size_key, symbol_key
from qvmi.symbols.witness import Witness

__all__ = ["LiveSymbols"]

_BTF_HEADER: Final = 24
_MAX_DEPTH: Final = 16
"""Anonymous structs nest two or three levels deep; deeper is a loop."""
_MAX_MEMBERS: Final = 10_000
"""``task_struct`` has about 250, those of anonymous structs in it included."""


class LiveSymbols:
    """This answers from the tables that the kernel keeps of itself.

    What was once answered for this kernel build is taken from the profile, if the bytes that it was
    read from are in this guest too, and new answers are added to it. Then the tables are not read.

    Args:
        read: reads the kernel's virtual memory.
        tables: where kallsyms lies.
        profile: the answers known so far.
    """

    def __init__(self, read: ReadVirtual, tables: KallsymsTables, profile: Profile) -> None:
        self.read = read
        self._tables = tables
        self.profile = profile
        self._compounds: dict[str, BtfType | None] = {}
        self._members: dict[str, dict[str, Field]] = {}
        self._believed: set[str] = set()

    @cached_property
    def kallsyms(self) -> Kallsyms:
        """This is the kernel's symbol table.

        Raises:
            CorruptTable: it contradicts itself, or cannot be read.
        """
        try:
            return Kallsyms(self.read, self._tables)
        except MemoryFault as fault:
            raise CorruptTable("kallsyms", str(fault)) from fault

    @cached_property
    def btf(self) -> Btf | None:
        """This is the kernel's type information, None where the kernel has none.

        Raises:
            CorruptTable: it contradicts itself, or cannot be read.
        """
        start, stop = self.find("__start_BTF"), self.find("__stop_BTF")
        if start is None or stop is None:
            return None
        try:
            size = btf_size(self.read(start, _BTF_HEADER))
            if size > stop - start:
                raise CorruptTable("BTF", f"{size} bytes do not fit between its symbols")
            return Btf(self.read(start, size))
        except MemoryFault as fault:
            raise CorruptTable("BTF", str(fault)) from fault

    def find(self, name: str) -> Va | None:
        """This is a symbol's address, None where the kernel has no such symbol.

        Raises:
            CorruptTable: its tables contradict themselves, or cannot be read.
        """
        key = symbol_key(name)
        if name in self.profile.symbols and self._may_believe(key):
            return self.profile.symbols[name]
        index = self.kallsyms.index_of(name)
        if index is None:
            self.profile.add_symbol(name, None)
        else:
            witness = Witness.of(self.kallsyms.witness(index))
            self.profile.add_symbol(name, self.kallsyms.address_at(index), witness)
        self._believed.add(key)
        return None if index is None else self.kallsyms.address_at(index)

    def find_field(self, type_name: str, names: Sequence[str]) -> Field | None:
        """This is the first of several members that a struct has.

        Raises:
            CorruptTable: as :meth:`find`.
        """
        question = f"{type_name}.{'|'.join(names)}"
        key = field_key(question)
        if question in self.profile.fields and self._may_believe(key):
            return self.profile.fields[question]
        found = self._own_field(type_name, names)
        if found is not None:
            self.profile.add_field(question, found, self._type_witness(type_name, found.name))
        else:
            found = self._nested_field(type_name, names)
            self.profile.add_field(question, found)
        self._believed.add(key)
        return found

    def size_of(self, type_name: str) -> int | None:
        """This is the size of a struct or union in bytes, None where it is unknown.

        Raises:
            CorruptTable: as :meth:`find`.
        """
        key = size_key(type_name)
        if type_name in self.profile.sizes and self._may_believe(key):
            return self.profile.sizes[type_name]
        record = self._compound(type_name)
        found = record.size_or_type if record else None
        self.profile.add_size(type_name, found, self._type_witness(type_name) if record else None)
        self._believed.add(key)
        return found

    def find_enumerator(self, type_name: str, name: str) -> int | None:
        """This is the value of an enumerator; None where the enumeration is unknown or lacks it.

        Raises:
            CorruptTable: as :meth:`find`.
        """
        question = f"{type_name}.{name}"
        key = enumerator_key(question)
        if question in self.profile.enumerators and self._may_believe(key):
            return self.profile.enumerators[question]
        btf = self.btf
        record = None if btf is None else btf.find_enum(type_name)
        found = None
        if btf is not None and record is not None:
            found = next((value for one, value in btf.enumerators(record) if one == name), None)
        witness = None if found is None else self._witness(record, name)
        self.profile.add_enumerator(question, found, witness)
        self._believed.add(key)
        return found

    def nearest(self, va: Va) -> NearestSymbol | None:
        """This is the kernel's symbol at or before an address, None outside of the kernel.

        Raises:
            CorruptTable: as :meth:`find`.
        """
        found = self.kallsyms.nearest(va)
        if found is None:
            return None
        return NearestSymbol(found.name, found.address, found.type, "")

    def _compound(self, type_name: str) -> BtfType | None:
        """This finds a struct or union, once."""
        known = self._compounds
        if type_name not in known:
            btf = self.btf
            known[type_name] = None if btf is None else btf.find_compound(type_name)
        return known[type_name]

    def _may_believe(self, key: str) -> bool:
        """This tells whether an answer was given here before, or its witness holds here too."""
        if key in self._believed:
            return True
        witness = self.profile.witnesses.get(key)
        if witness is None or not witness.holds(self.read):
            return False
        self._believed.add(key)
        return True

    def _type_witness(self, type_name: str, member: str | None = None) -> Witness | None:
        """These are the bytes that describe a struct, and one of its own members."""
        return self._witness(self._compound(type_name), member)

    def _witness(self, record: BtfType | None, member: str | None) -> Witness | None:
        btf, start = self.btf, self.find("__start_BTF")
        if record is None or btf is None or start is None:
            return None
        return Witness.of((Va(start + at), data) for at, data in btf.witness(record, member))

    def _own_field(self, type_name: str, names: Sequence[str]) -> Field | None:
        """This looks at the members that a struct names itself, which decodes nothing else."""
        record, btf = self._compound(type_name), self.btf
        if record is None or btf is None:
            return None
        if type_name not in self._members:
            self._members[type_name] = {
                one.name: _field(one, 0) for one in btf.members(record) if one.name
            }
        return _first(self._members[type_name], names)

    def _nested_field(self, type_name: str, names: Sequence[str]) -> Field | None:
        """This looks into anonymous members, which needs all types decoded."""
        record, btf = self._compound(type_name), self.btf
        if record is None or btf is None:
            return None
        nested = list(islice(_nested_members(btf, record), _MAX_MEMBERS))
        if len(nested) == _MAX_MEMBERS:
            raise CorruptTable("BTF", f"{type_name} has {_MAX_MEMBERS} members and more")
        return _first({one.name: one for one in nested if one.name}, names)


def _first(members: Mapping[str, Field], names: Sequence[str]) -> Field | None:
    return next((members[name] for name in names if name in members), None)


def _field(member: BtfMember, base_bits: int) -> Field:
    at = base_bits + member.bit_offset
    return Field(member.name, at // 8, at % 8 if member.bit_size else 0, member.bit_size)


def _nested_members(
    btf: Btf, record: BtfType, base_bits: int = 0, depth: int = 0
) -> Iterator[Field]:
    """This iterates all members, those of anonymous structs and unions as those of the struct.

    The anonymous ones are iterated too, so that the number of items tells how much was done.
    """
    if depth > _MAX_DEPTH:
        raise CorruptTable("BTF", f"{record.name}: anonymous members nest too deep")
    for member in btf.members(record):
        yield _field(member, base_bits)
        if not member.name:
            inner = btf.type(btf.resolved(member.type_id))
            if inner.kind in {BtfKind.STRUCT, BtfKind.UNION}:
                yield from _nested_members(btf, inner, base_bits + member.bit_offset, depth + 1)
