"""A kernel's BTF as the types of an ISF file.

References: Linux Documentation/bpf/btf.rst, section 2.2 (kinds); Volatility 3
framework/objects/__init__.py (``BitField``: which bits of which bytes).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from qvmi.errors import CorruptTable
from qvmi.symbols.btf import TRANSPARENT, Btf, BtfKind
from qvmi.symbols.isf_enums import kernel_enums
from qvmi.symbols.isf_names import type_names
from qvmi.symbols.isf_schema import (
    VOID,
    Array,
    Base,
    BaseType,
    Bitfield,
    Enum,
    EnumRef,
    Function,
    Member,
    Pointer,
    StructRef,
    TypeRef,
    UnionRef,
    UserType,
)

__all__ = ["KernelTypes", "kernel_types"]

_MAX_MEMBERS: Final = 1 << 19
"""Members and enumerators; kernels have some 80,000. Bounds the file that a lying guest makes."""

_MAX_TEXT: Final = 32 << 20
"""Characters of their names; kernels have some 1,000,000. Bounds the same."""

_MAX_DEPTH: Final = 16
"""Pointers, arrays, typedefs and qualifiers in a row are a few; more are a loop, or a lie."""

_POINTER_SIZE: Final = 8
_INT_SIGNED: Final = 1
_INT_CHAR: Final = 2
_INT_BOOL: Final = 4

_STANDARD: Final = {
    "void": BaseType(0, signed=False, kind="void"),
    "pointer": BaseType(_POINTER_SIZE, signed=False, kind="int"),
    "char": BaseType(1, signed=True, kind="char"),
    "signed char": BaseType(1, signed=True, kind="char"),
    "unsigned char": BaseType(1, signed=False, kind="char"),
    "short int": BaseType(2, signed=True, kind="int"),
    "short unsigned int": BaseType(2, signed=False, kind="int"),
    "int": BaseType(4, signed=True, kind="int"),
    "unsigned int": BaseType(4, signed=False, kind="int"),
    "long int": BaseType(8, signed=True, kind="int"),
    "long unsigned int": BaseType(8, signed=False, kind="int"),
    "_Bool": BaseType(1, signed=False, kind="bool"),
}
"""Base types that readers count on, named as compilers name them in debug information."""

_CHARACTERS: Final = frozenset({"char", "signed char", "unsigned char"})
_PLACE_BITS: Final = 24
_PLACE: Final = (1 << _PLACE_BITS) - 1
"""Where members may be bit-fields, the upper byte of a member's place is its width in bits."""


@dataclass(frozen=True, slots=True)
class KernelTypes:
    """These are all types of one kernel, by name.

    Args:
        base_types: integers and floats.
        user_types: structs and unions.
        enums: enumerations.
        variables: types of the global variables that BTF knows.
    """

    base_types: dict[str, BaseType]
    user_types: dict[str, UserType]
    enums: dict[str, Enum]
    variables: dict[str, TypeRef]

    def has(self, type_ref: TypeRef) -> bool:
        """This tells whether all that a type refers to is there."""
        match type_ref:
            case Pointer(subtype) | Array(_, subtype):
                return self.has(subtype)
            case StructRef(name) | UnionRef(name):
                return name in self.user_types
            case EnumRef(name):
                return name in self.enums
            case Base(name):
                return name in self.base_types
        return True

    def size(self, type_ref: TypeRef) -> int:
        """This is the size of a type in bytes, 0 where it is not known."""
        match type_ref:
            case Pointer():
                return _POINTER_SIZE
            case Array(count, subtype):
                return count * self.size(subtype)
            case StructRef(name) | UnionRef(name) if name in self.user_types:
                return self.user_types[name].size
            case EnumRef(name) if name in self.enums:
                return self.enums[name].size
            case Base(name) if name in self.base_types:
                return self.base_types[name].size
        return 0


def kernel_types(btf: Btf) -> KernelTypes:
    """This converts all types of a kernel.

    Raises:
        CorruptTable: they contradict themselves.
    """
    return _Conversion(btf).run()


class _Bits(NamedTuple):
    """This is where a bit-field lies, from the start of its struct."""

    offset: int
    size: int


class _Conversion:
    """This is one conversion in progress."""

    def __init__(self, btf: Btf) -> None:
        self._table = btf.table()
        self._strings = btf.strings
        self._texts: dict[int, str] = {0: ""}
        self._text_size = 0
        self._names = type_names(self._table, self._text)
        self._base_types = dict(_STANDARD)
        self._references: dict[int, TypeRef] = {0: VOID}
        self._depths = {0: 0}
        self._narrow: dict[int, _Bits] = {}
        """Integers narrower than their size: the bit-fields of BTF without ``kind_flag``."""

    def run(self) -> KernelTypes:
        """This converts all types; integers first, for others are measured in them."""
        table = self._table
        for type_id in table.ids(BtfKind.INT):
            self._add_integer(type_id)
        for type_id in table.ids(BtfKind.FLOAT):
            base = BaseType(table.size_or_type(type_id), signed=True, kind="float")
            self._add_base(type_id, base)
        compounds = table.ids(BtfKind.STRUCT, BtfKind.UNION)
        enumerations = table.ids(BtfKind.ENUM, BtfKind.ENUM64)
        if sum(map(table.vlen, compounds + enumerations)) > _MAX_MEMBERS:
            raise CorruptTable("BTF", f"more than {_MAX_MEMBERS} members of types")
        user_types = {self._names[type_id]: self._user_type(type_id) for type_id in compounds}
        variables: dict[str, TypeRef] = {}
        for type_id in table.ids(BtfKind.VAR):
            name = self._text(table.name(type_id))
            variables.setdefault(name, self._reference(table.size_or_type(type_id)))
        enums = kernel_enums(table, self._names, self._counted_text)
        return KernelTypes(self._base_types, user_types, enums, variables)

    def _text(self, offset: int) -> str:
        """This is the name at an offset; many members share theirs."""
        known = self._texts.get(offset)
        if known is None:
            known = self._texts[offset] = self._strings.at(offset)
        return known

    def _counted_text(self, offset: int) -> str:
        """This is the name at an offset, counted among those that the file will hold.

        Raises:
            CorruptTable: they are too long, all together.
        """
        text = self._text(offset)
        self._count_text(len(text))
        return text

    def _count_text(self, characters: int) -> None:
        self._text_size += characters
        if self._text_size > _MAX_TEXT:
            raise CorruptTable("BTF", f"more than {_MAX_TEXT >> 20} MiB of names")

    def _add_integer(self, type_id: int) -> None:
        size = self._table.size_or_type(type_id)
        encoding = self._table.behind(type_id, 1, 1)[0]
        flags, offset, bits = encoding >> 24 & 0xF, encoding >> 16 & 0xFF, encoding & 0xFF
        signed = bool(flags & _INT_SIGNED)
        if flags & _INT_BOOL:
            base = BaseType(size, signed=False, kind="bool")
        elif flags & _INT_CHAR or self._text(self._table.name(type_id)) in _CHARACTERS:
            base = BaseType(size, signed=signed, kind="char")
        else:
            base = BaseType(size, signed=signed, kind="int")
        if bits == 8 * size:
            self._add_base(type_id, base)
        else:
            self._narrow[type_id] = _Bits(offset, bits)

    def _add_base(self, type_id: int, base: BaseType) -> None:
        """This adds a base type; the first of a name counts, but for the standard ones."""
        name = self._text(self._table.name(type_id))
        if name not in self._base_types or self._base_types[name] is _STANDARD.get(name):
            self._base_types[name] = base

    def _reference(self, type_id: int, room: int = _MAX_DEPTH) -> TypeRef:
        """This is how a member refers to a type, made once.

        Args:
            type_id: of the type.
            room: how many other types it may go through.

        Raises:
            CorruptTable: the type is made of itself, of too many others, or is none.
        """
        if type_id not in self._references:
            if room and type_id < len(self._table):
                self._add_reference(type_id, room - 1)
            else:
                raise CorruptTable("BTF", f"type {type_id} is none, or made of itself")
        if self._depths[type_id] > room:
            raise CorruptTable("BTF", f"type {type_id} is made of more than {_MAX_DEPTH} others")
        return self._references[type_id]

    def _add_reference(self, type_id: int, room: int) -> None:
        table = self._table
        kind = BtfKind(table.kinds[type_id])
        inner = 0
        if kind is BtfKind.ARRAY:
            inner, _, count = table.behind(type_id, 3, 1)
            made: TypeRef = Array(count, self._reference(inner, room))
        elif kind is BtfKind.PTR:
            inner = table.size_or_type(type_id)
            made = Pointer(self._reference(inner, room))
        elif kind in TRANSPARENT:
            inner = table.size_or_type(type_id)
            made = self._reference(inner, room)
        else:
            made = self._plain_reference(type_id, kind)
        self._depths[type_id] = self._depths[inner] + 1
        self._references[type_id] = made

    def _plain_reference(self, type_id: int, kind: BtfKind) -> TypeRef:
        """This is how a member refers to a type that is of no other."""
        match kind:
            case BtfKind.STRUCT:
                return StructRef(self._names[type_id])
            case BtfKind.UNION:
                return UnionRef(self._names[type_id])
            case BtfKind.ENUM | BtfKind.ENUM64:
                return EnumRef(self._names[type_id])
            case BtfKind.FUNC | BtfKind.FUNC_PROTO:
                return Function()
        name = self._text(self._table.name(type_id))
        match kind:
            case BtfKind.INT | BtfKind.FLOAT:
                return Base(name)
            case BtfKind.FWD:  # its name may be defined nowhere; then it is for pointers only
                return UnionRef(name) if self._table.kind_flag(type_id) else StructRef(name)
        raise CorruptTable("BTF", f"type {type_id} is no type but {kind.name} {name}")

    def _user_type(self, type_id: int) -> UserType:
        references = self._references
        fields: dict[str, Member] = {}
        for name, member_type, place, bits in self._members(type_id):
            if bits:
                if name:
                    fields[name] = self._bit_field(member_type, _Bits(place, bits))
                continue
            reference = references.get(member_type) or self._reference(member_type)
            if name:
                fields[name] = Member(reference, place // 8)
            elif isinstance(reference, StructRef | UnionRef):
                key = _anonymous_key(place // 8, fields)
                fields[key] = Member(reference, place // 8, anonymous=True)
        self._count_text(sum(map(len, fields)))
        is_struct = self._table.kinds[type_id] == BtfKind.STRUCT
        size = self._table.size_or_type(type_id)
        return UserType(size, fields, "struct" if is_struct else "union")

    def _members(self, type_id: int) -> Iterator[tuple[str, int, int, int]]:
        """This iterates (name, type, offset in bits, width of a bit-field in bits)."""
        words = self._table.behind(type_id, 3)
        texts, narrow = self._texts, self._narrow
        has_widths = self._table.kind_flag(type_id)
        for at, member_type, place in zip(words[::3], words[1::3], words[2::3], strict=True):
            name = texts[at] if at in texts else self._text(at)
            if has_widths:
                yield name, member_type, place & _PLACE, place >> _PLACE_BITS
            elif narrow and (bits := narrow.get(self._unqualified(member_type))):
                yield name, member_type, place + bits.offset, bits.size
            else:
                yield name, member_type, place, 0

    def _unqualified(self, type_id: int) -> int:
        """This is the type behind typedefs and qualifiers."""
        table = self._table
        for _ in range(_MAX_DEPTH):
            if type_id >= len(table) or table.kinds[type_id] not in TRANSPARENT:
                break
            type_id = table.size_or_type(type_id)
        return type_id

    def _bit_field(self, member_type: int, bits: _Bits) -> Member:
        """This places a bit-field in an aligned integer of its type, or in a wider one."""
        base = self._reference(member_type)
        if not isinstance(base, Base | EnumRef):
            raise CorruptTable("BTF", f"a bit-field of type {member_type}, which is no integer")
        unit = self._table.size_or_type(self._unqualified(member_type)) or 1
        offset = bits.offset // (8 * unit) * unit
        if bits.offset - 8 * offset + bits.size > 8 * unit:  # packed
            offset = bits.offset // 8
            if bits.offset % 8 + bits.size > 8 * unit:
                base = Base("long unsigned int")
        return Member(Bitfield(bits.offset - 8 * offset, bits.size, base), offset)


def _anonymous_key(offset: int, fields: dict[str, Member]) -> str:
    """This is a key for a member without a name; several may lie at one offset."""
    key = f"unnamed_field_{offset:x}"
    return key if key not in fields else f"{key}_{len(fields)}"
