"""The layout of single types, out of an ISF file of the user's.

References: Volatility 3 volatility3/schemas/schema-6.2.0.json and older ones; dwarf2json main.go, whose
types have their typedefs and qualifiers resolved: there are none of either in such a file.
"""

from collections.abc import Iterator, Mapping
from typing import Final, TypeVar

import msgspec

from qvmi.errors import CorruptTable
from qvmi.symbols.isf_file import IsfFile
from qvmi.symbols.isf_schema import (
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
from qvmi.symbols.type_layout import Constant, MemberLayout, TypeKind, TypeLayout, TypeName

__all__ = ["IsfLayouts"]

_MAX_DEPTH: Final = 32
"""Pointers, arrays and anonymous structs in a row are a few; more are a loop, or a lie."""
_MAX_MEMBERS: Final = 10_000
"""``task_struct`` has about 250, those of anonymous structs in it included."""
_POINTER_SIZE: Final = 8
_ANONYMOUS: Final = "unnamed_"
"""How types and members without a name are called."""

Described = TypeVar("Described", UserType, Enum, BaseType)


class IsfLayouts:
    """This answers for the types of one file.

    Args:
        file: that was read.
        source: what its types say that they are from; empty where the file stands for the guest.
    """

    def __init__(self, file: IsfFile, source: str = "") -> None:
        self._file = file
        self._source = source
        self._left = 0
        self._known: dict[tuple[type, str], UserType | Enum | BaseType | None] = {}

    def find(self, wanted: TypeName) -> TypeLayout | None:
        """This is the type of a name, None where there is none.

        Raises:
            CorruptTable: the file contradicts itself.
        """
        self._left = _MAX_MEMBERS
        content, name = self._file.content, wanted.name
        if wanted.kind in {None, TypeKind.STRUCT, TypeKind.UNION}:
            compound = self._described(content.user_types, name, UserType)
            if compound is not None and wanted.kind in {None, TypeKind(compound.kind)}:
                members = tuple(self._members(compound))
                kind = TypeKind(compound.kind)
                return TypeLayout(name, kind, compound.size, "", members, source=self._source)
        if wanted.kind in {None, TypeKind.ENUM}:
            enum = self._described(content.enums, name, Enum)
            if enum is not None:
                constants = tuple(Constant(*pair) for pair in enum.constants.items())
                return TypeLayout(
                    name, TypeKind.ENUM, enum.size, constants=constants, source=self._source
                )
        base = None if wanted.kind else self._described(content.base_types, name, BaseType)
        if base is None:
            return None
        return TypeLayout(name, TypeKind.BASE, base.size, source=self._source)

    def _described(
        self, kept: Mapping[str, msgspec.Raw], name: str, form: type[Described]
    ) -> Described | None:
        key = (form, name)
        if key not in self._known:
            self._known[key] = self._decoded(kept.get(name), name, form)
        found = self._known[key]
        return found if isinstance(found, form) else None

    def _decoded(
        self, raw: msgspec.Raw | None, name: str, form: type[Described]
    ) -> Described | None:
        if raw is None:
            return None
        try:
            return msgspec.json.decode(raw, type=form)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise CorruptTable(str(self._file.path), f"its type {name!r}: {error}") from error

    def _members(self, compound: UserType, base: int = 0, depth: int = 0) -> Iterator[MemberLayout]:
        if depth > _MAX_DEPTH:
            raise CorruptTable(str(self._file.path), "its types nest too deep")
        for name, member in compound.fields.items():
            self._left -= 1
            if self._left < 0:
                raise CorruptTable(
                    str(self._file.path), f"a type has {_MAX_MEMBERS} members and more"
                )
            yield self._member(name, member, base, depth)

    def _member(self, name: str, member: Member, base: int, depth: int) -> MemberLayout:
        of, at = member.type, base + member.offset
        bit_offset = bit_size = 0
        if isinstance(of, Bitfield):
            at, bit_offset = at + of.bit_position // 8, of.bit_position % 8
            bit_size, of = of.bit_length, of.type
        inner: tuple[MemberLayout, ...] = ()
        is_anonymous = member.anonymous or name.startswith(_ANONYMOUS)
        if isinstance(of, StructRef | UnionRef) and (
            is_anonymous or of.name.startswith(_ANONYMOUS)
        ):
            compound = self._described(self._file.content.user_types, of.name, UserType)
            inner = () if compound is None else tuple(self._members(compound, at, depth + 1))
        shown = "" if is_anonymous else name
        return MemberLayout(
            shown, _declaration(of), at, self._size(of), bit_offset, bit_size, inner
        )

    def _size(self, of: TypeRef) -> int:
        """This is the size of a type in bytes, 0 where that is not known."""
        content, count = self._file.content, 1
        while isinstance(of, Array):
            count, of = count * of.count, of.subtype
        match of:
            case Pointer():
                return count * _POINTER_SIZE
            case StructRef(name) | UnionRef(name):
                compound = self._described(content.user_types, name, UserType)
                return 0 if compound is None else count * compound.size
            case EnumRef(name):
                enum = self._described(content.enums, name, Enum)
                return 0 if enum is None else count * enum.size
            case Base(name):
                base = self._described(content.base_types, name, BaseType)
                return 0 if base is None else count * base.size
        return 0


def _declaration(of: TypeRef) -> str:
    """This is a type as C writes it; parameters of functions are not in such a file."""
    inner = ""
    while isinstance(of, Pointer | Array | Function | Bitfield):
        if isinstance(of, Pointer):
            inner, of = "*" + inner, of.subtype
        elif isinstance(of, Array):
            inner, of = f"{_in_parentheses(inner)}[{of.count}]", of.subtype
        elif isinstance(of, Bitfield):
            of = of.type
        else:
            return f"void {_in_parentheses(inner)}()"
    between = "" if not inner or inner.startswith("[") else " "
    return _base(of) + between + inner


def _in_parentheses(inner: str) -> str:
    return f"({inner})" if inner.startswith("*") else inner


def _base(of: Base | StructRef | UnionRef | EnumRef) -> str:
    if isinstance(of, Base):
        return of.name
    tag = "struct" if isinstance(of, StructRef) else "union"
    tag = "enum" if isinstance(of, EnumRef) else tag
    return f"{tag} {'{...}' if of.name.startswith(_ANONYMOUS) else of.name}"
