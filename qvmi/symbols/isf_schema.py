"""The parts of an ISF file, Volatility 3's format for symbols and types, as they are written.

References: Volatility 3 volatility3/schemas/schema-6.2.0.json; dwarf2json main.go (what its readers
are used to).
"""

from typing import Final, Literal

import msgspec

__all__ = [
    "ISF_VERSION",
    "VOID",
    "Array",
    "Base",
    "BaseType",
    "Bitfield",
    "Document",
    "Enum",
    "EnumRef",
    "Function",
    "Member",
    "Metadata",
    "Pointer",
    "Producer",
    "Source",
    "Sources",
    "StructRef",
    "Symbol",
    "TypeRef",
    "UnionRef",
    "UserType",
]

ISF_VERSION: Final = "6.2.0"
"""The first version that can mark members as anonymous."""


class Base(msgspec.Struct, frozen=True, gc=False, tag_field="kind", tag="base"):
    """This refers to one of the file's base types by name."""

    name: str


class StructRef(msgspec.Struct, frozen=True, gc=False, tag_field="kind", tag="struct"):
    """This refers to one of the file's user types that is a struct."""

    name: str


class UnionRef(msgspec.Struct, frozen=True, gc=False, tag_field="kind", tag="union"):
    """This refers to one of the file's user types that is a union."""

    name: str


class EnumRef(msgspec.Struct, frozen=True, gc=False, tag_field="kind", tag="enum"):
    """This refers to one of the file's enums."""

    name: str


class Function(msgspec.Struct, frozen=True, gc=False, tag_field="kind", tag="function"):
    """This stands for any function."""


class Pointer(msgspec.Struct, frozen=True, gc=False, tag_field="kind", tag="pointer"):
    """This is a pointer to another type."""

    subtype: "TypeRef"


class Array(msgspec.Struct, frozen=True, gc=False, tag_field="kind", tag="array"):
    """This is an array of another type."""

    count: int
    subtype: "TypeRef"


class Bitfield(msgspec.Struct, frozen=True, gc=False, tag_field="kind", tag="bitfield"):
    """This is some bits of an integer.

    Args:
        bit_position: of the lowest bit in the integer of ``type`` that lies at the member's offset.
        bit_length: number of bits.
        type: of the integer.
    """

    bit_position: int
    bit_length: int
    type: Base | EnumRef


TypeRef = Base | StructRef | UnionRef | EnumRef | Function | Pointer | Array | Bitfield

VOID: Final = Base("void")


class Member(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """This is one member of a struct or union.

    Args:
        type: what it is.
        offset: from the start of the struct, in bytes.
        anonymous: whether its own members are to be found as if they were the struct's.
    """

    type: TypeRef
    offset: int
    anonymous: bool = False


class UserType(msgspec.Struct, frozen=True, gc=False):
    """This is a struct or union, of ``size`` bytes."""

    size: int
    fields: dict[str, Member]
    kind: Literal["struct", "union"]


class Enum(msgspec.Struct, frozen=True, gc=False):
    """This is an enumeration; ``base`` names the base type that it is stored as."""

    size: int
    base: str
    constants: dict[str, int]


class BaseType(msgspec.Struct, frozen=True, gc=False):
    """This is a type that is made of no others, of ``size`` bytes."""

    size: int
    signed: bool
    kind: Literal["void", "int", "float", "char", "bool"]
    endian: Literal["little", "big"] = "little"


class Symbol(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """This is a symbol.

    Args:
        type: of what lies there; :data:`VOID` where that is unknown.
        address: as linked, without KASLR.
        constant_data: the bytes there, where they tell one kernel from another.
    """

    type: TypeRef
    address: int
    constant_data: bytes = b""


class Source(msgspec.Struct, frozen=True, omit_defaults=True):
    """This names where something was taken from."""

    name: str
    kind: Literal["", "dwarf", "symtab", "system-map"] = ""


class Sources(msgspec.Struct, frozen=True):
    """This names where the symbols and the types were taken from."""

    symbols: tuple[Source, ...]
    types: tuple[Source, ...]


class Producer(msgspec.Struct, frozen=True):
    """This names the program whose conventions the file keeps to, and the one that wrote it."""

    name: str
    version: str
    generator: str


class Metadata(msgspec.Struct, frozen=True):
    """This says what kind of file it is."""

    linux: Sources
    producer: Producer
    format: str


class Document(msgspec.Struct, frozen=True):
    """This is the whole file."""

    metadata: Metadata
    base_types: dict[str, BaseType]
    user_types: dict[str, UserType]
    enums: dict[str, Enum]
    symbols: dict[str, Symbol]
