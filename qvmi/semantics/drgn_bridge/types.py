"""A kernel's BTF as drgn's types, each made when it is first asked for.

References: Linux Documentation/bpf/btf.rst, section 2.2 (kinds); drgn's ``Program.register_type_finder``
and type constructors.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Final

from drgn import (
    Object,
    Program,
    Qualifiers,
    Type,
    TypeEnumerator,
    TypeKind,
    TypeMember,
    TypeParameter,
    sizeof,
)

from qvmi.errors import CorruptTable
from qvmi.symbols.btf import Btf, BtfKind, BtfMember, BtfType

__all__ = ["BtfTypes"]

_MAX_DEPTH: Final = 16
"""Pointers, arrays, typedefs, qualifiers and anonymous members in a row are a few; more are a loop."""
_MAX_FLAT: Final = 1 << 16
"""Members of a struct with those of its anonymous members; drgn looks at all of them at once."""
_SIGNED, _BOOL = 1, 4
_WORD_BITS: Final = 32

_FINDABLE: Final = {
    BtfKind.INT: TypeKind.INT,
    BtfKind.FLOAT: TypeKind.FLOAT,
    BtfKind.STRUCT: TypeKind.STRUCT,
    BtfKind.UNION: TypeKind.UNION,
    BtfKind.ENUM: TypeKind.ENUM,
    BtfKind.ENUM64: TypeKind.ENUM,
    BtfKind.TYPEDEF: TypeKind.TYPEDEF,
}
_QUALIFIERS: Final = {
    BtfKind.CONST: Qualifiers.CONST,
    BtfKind.VOLATILE: Qualifiers.VOLATILE,
    BtfKind.RESTRICT: Qualifiers.RESTRICT,
}
_COMPOUND: Final = (BtfKind.STRUCT, BtfKind.UNION)
_INTEGERS: Final = {
    # (bytes, signed): what an enumeration is stored as
    (1, True): "signed char",
    (1, False): "unsigned char",
    (2, True): "short",
    (2, False): "unsigned short",
    (4, True): "int",
    (4, False): "unsigned int",
    (8, True): "long",
    (8, False): "unsigned long",
}


class BtfTypes:
    """This makes the types of one BTF.

    Args:
        program: that they are for.
        btf: the kernel's, or a module's.
        base: makes the kernel's types when the BTF is a module's.
    """

    def __init__(self, program: Program, btf: Btf, base: "BtfTypes | None" = None) -> None:
        self._program = program
        self.btf = btf
        self._base = base
        self._made: dict[int, Type] = {}
        self._flat: dict[int, int] = {}
        self._makers: dict[BtfKind, Callable[[int, BtfType, int], Type]] = {
            BtfKind.VOID: lambda *_: program.void_type(),
            BtfKind.INT: self._integer,
            BtfKind.FLOAT: lambda _, one, __: program.float_type(one.name, one.size_or_type),
            BtfKind.PTR: lambda _, one, room: program.pointer_type(self._of(one, room)),
            BtfKind.ARRAY: self._array,
            BtfKind.STRUCT: self._compound,
            BtfKind.UNION: self._compound,
            BtfKind.FWD: self._forward,
            BtfKind.ENUM: self._enumeration,
            BtfKind.ENUM64: self._enumeration,
            BtfKind.TYPEDEF: lambda _, one, room: program.typedef_type(
                one.name, self._of(one, room)
            ),
            BtfKind.FUNC_PROTO: self._function,
        }

    def find(self, kind: TypeKind, name: str) -> Type | None:
        """This is the first type of a kind and name, None where there is none."""
        type_id = self._names.get((kind, name))
        return None if type_id is None else self.make(type_id)

    def make(self, type_id: int, room: int = _MAX_DEPTH) -> Type:
        """This is the type with an id, made once.

        Args:
            type_id: of the type.
            room: how many other types it may go through.

        Raises:
            CorruptTable: it is no type, or made of itself.
        """
        made = self._made.get(type_id)
        if made is not None:
            return made
        if self._base is not None and self.btf.owner(type_id) is self._base.btf:
            return self._base.make(type_id, room)
        if not room:
            raise CorruptTable("BTF", f"type {type_id} is made of more than {_MAX_DEPTH} others")
        record = self.btf.type(type_id)
        maker = self._makers.get(record.kind, self._transparent)
        try:
            made = self._made[type_id] = maker(type_id, record, room - 1)
        except (ValueError, TypeError, OverflowError) as error:
            raise CorruptTable("BTF", f"type {type_id} ({record.name}): {error}") from error
        return made

    def enumerators(self, type_id: int) -> Iterator[tuple[str, int]]:
        """This iterates (name, value) of an enumeration."""
        record = self.btf.type(type_id)
        each = 2 if record.kind is BtfKind.ENUM else 3
        words = self.btf.words(record, each * record.vlen)
        bits = _WORD_BITS * (each - 1)
        signed = self._is_signed(record, words)
        for at in range(0, len(words), each):
            value = words[at + 1] | (words[at + 2] << _WORD_BITS if each > 2 else 0)  # noqa: PLR2004 - words of ENUM64
            yield (
                self.btf.string(words[at]),
                value - (1 << bits if signed and value >> bits - 1 else 0),
            )

    @cached_property
    def _names(self) -> dict[tuple[TypeKind, str], int]:
        """The first id of each name; an enumeration without enumerators stands for another one."""
        found: dict[tuple[TypeKind, str], int] = {}
        for type_id in self.ids(*_FINDABLE):
            record = self.btf.type(type_id)
            kind = _FINDABLE[record.kind]
            if kind is TypeKind.ENUM and not record.vlen:
                continue
            if kind is TypeKind.INT and self._encoding(record) & _BOOL:
                kind = TypeKind.BOOL
            if record.name:
                found.setdefault((kind, record.name), type_id)
        return found

    def ids(self, *kinds: BtfKind) -> Iterable[int]:
        """These are the types of some kinds that this BTF itself defines, by rising id in each kind."""
        if self._base is None:
            return self.btf.table().ids(*kinds)
        return [one for one in self.btf.own_ids() if self.btf.type(one).kind in kinds]

    @cached_property
    def signs_are_told(self) -> bool:
        """This tells whether a flag says which enumerations have values below zero, as since Linux 6.0."""
        if self._base is not None:
            return self._base.signs_are_told
        narrow = (self.btf.type(one).kind_flag for one in self.ids(BtfKind.ENUM))
        return bool(self.ids(BtfKind.ENUM64)) or any(narrow)

    def _of(self, record: BtfType, room: int) -> Type:
        return self.make(record.size_or_type, room)

    def _transparent(self, type_id: int, record: BtfType, room: int) -> Type:
        """This is a qualified type, or what a tag or a function's name stands for."""
        if record.kind in _QUALIFIERS:
            return self._of(record, room).qualified(_QUALIFIERS[record.kind])
        if record.kind in {BtfKind.TYPE_TAG, BtfKind.FUNC}:
            return self._of(record, room)
        raise CorruptTable("BTF", f"type {type_id} is no type but {record.kind.name} {record.name}")

    def _encoding(self, record: BtfType) -> int:
        return self.btf.words(record, 1)[0] >> 24 & 0xF

    def _integer(self, _: int, record: BtfType, __: int) -> Type:
        encoding = self._encoding(record)
        if encoding & _BOOL:
            return self._program.bool_type(record.name, record.size_or_type)
        return self._program.int_type(record.name, record.size_or_type, bool(encoding & _SIGNED))

    def _array(self, _: int, record: BtfType, room: int) -> Type:
        element, _, count = self.btf.words(record, 3)
        made = self.make(element, room)
        if not count:
            return self._program.array_type(made)
        array = self._program.array_type(made, count)
        sizeof(array)  # refuses what has none, as void: drgn would only when a member is looked at
        return array

    def _forward(self, type_id: int, record: BtfType, _: int) -> Type:
        """This is the struct that is only named here, with its members if it has them elsewhere."""
        kind = TypeKind.UNION if record.kind_flag else TypeKind.STRUCT
        known = self._names.get((kind, record.name))
        if known is not None and known != type_id:
            return self.make(known)
        make = self._program.union_type if record.kind_flag else self._program.struct_type
        return make(record.name)

    def _compound(self, type_id: int, record: BtfType, _: int) -> Type:
        self._count_flat(type_id, _MAX_DEPTH)
        members = [self._member(member) for member in self._placed(record)]
        is_struct = record.kind is BtfKind.STRUCT
        make = self._program.struct_type if is_struct else self._program.union_type
        return make(record.name or None, record.size_or_type, members)

    def _member(self, member: BtfMember) -> TypeMember:
        """This is a member whose type is made when somebody looks at it."""
        name = member.name or None
        if member.bit_size:
            return TypeMember(
                lambda: Object(
                    self._program, self.make(member.type_id), bit_field_size=member.bit_size
                ),
                name,
                member.bit_offset,
            )
        return TypeMember(lambda: self.make(member.type_id), name, member.bit_offset)

    def _placed(self, record: BtfType) -> Iterator[BtfMember]:
        """This iterates members; in older BTF bit-fields are told by integers narrower than their size."""
        for member in self.btf.members(record):
            if not record.kind_flag:
                behind_id = self.btf.resolved(member.type_id)
                behind = self.btf.type(behind_id)
                if behind.kind is BtfKind.INT:
                    word = self.btf.owner(behind_id).words(behind, 1)[0]
                    offset, bits = word >> 16 & 0xFF, word & 0xFF
                    if bits != 8 * behind.size_or_type:
                        place = member.bit_offset + offset
                        yield member._replace(bit_offset=place, bit_size=bits)
                        continue
            yield member

    def _count_flat(self, type_id: int, room: int) -> int:
        """This counts members, those of anonymous members as the struct's own, as drgn does later.

        Raises:
            CorruptTable: a struct is a member of itself, or there are too many.
        """
        if type_id in self._flat:
            return self._flat[type_id]
        if not room:
            raise CorruptTable("BTF", f"type {type_id}: anonymous members nest too deep")
        owner = self.btf.owner(type_id)
        record = owner.type(type_id)
        total = record.vlen
        for member in owner.members(record):
            if not member.name:
                inner = self.btf.resolved(member.type_id)
                if self.btf.type(inner).kind in _COMPOUND:
                    total += self._count_flat(inner, room - 1)
        if total > _MAX_FLAT:
            raise CorruptTable("BTF", f"type {type_id} has more than {_MAX_FLAT} members")
        self._flat[type_id] = total
        return total

    def _enumeration(self, type_id: int, record: BtfType, _: int) -> Type:
        if not record.vlen:
            return self._program.enum_type(record.name or None)
        found = [TypeEnumerator(name, value) for name, value in self.enumerators(type_id)]
        signed = any(one.value < 0 for one in found) or record.kind_flag
        size = record.size_or_type
        stored = self._program.int_type(_INTEGERS.get((size, signed), "int"), size, signed)
        return self._program.enum_type(record.name or None, stored, found)

    def _is_signed(self, record: BtfType, words: tuple[int, ...]) -> bool:
        """This tells whether values may be below zero; before Linux 6.0 no flag says so."""
        if record.kind_flag or record.kind is BtfKind.ENUM64:
            return record.kind_flag
        return not self.signs_are_told and any(value >> _WORD_BITS - 1 for value in words[1::2])

    def _function(self, _: int, record: BtfType, room: int) -> Type:
        words = self.btf.words(record, 2 * record.vlen)
        pairs = list(zip(words[::2], words[1::2], strict=True))
        variadic = bool(pairs) and pairs[-1] == (0, 0)
        parameters = [
            TypeParameter(self._later(parameter), self.btf.string(name) or None)
            for name, parameter in (pairs[:-1] if variadic else pairs)
        ]
        return self._program.function_type(self._of(record, room), parameters, variadic)

    def _later(self, type_id: int) -> Callable[[], Type]:
        return lambda: self.make(type_id)
