"""ISF documents as their readers see them: plain JSON, held to Volatility's schema.

References: Volatility 3 volatility3/schemas/schema-6.2.0.json, of which these types are a copy by
hand; what is not named there is forbidden.
"""

import json
from typing import Annotated, Any, Literal

import msgspec

from qvmi.symbols.isf_schema import Document

__all__ = ["as_json", "assert_fits_schema"]


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    pass


class Base(Strict, tag_field="kind", tag="base"):
    name: str


class StructRef(Strict, tag_field="kind", tag="struct"):
    name: str


class UnionRef(Strict, tag_field="kind", tag="union"):
    name: str


class EnumRef(Strict, tag_field="kind", tag="enum"):
    name: str


class Function(Strict, tag_field="kind", tag="function"):
    pass


class Pointer(Strict, tag_field="kind", tag="pointer"):
    subtype: "Descriptor"
    base: str = ""


class Array(Strict, tag_field="kind", tag="array"):
    subtype: "Descriptor"
    count: int


class Bitfield(Strict, tag_field="kind", tag="bitfield"):
    bit_position: int
    bit_length: int
    type: Base | EnumRef


Descriptor = Base | StructRef | UnionRef | EnumRef | Function | Pointer | Array | Bitfield


class Field(Strict):
    type: Descriptor
    offset: int
    anonymous: bool = False


class UserType(Strict):
    kind: Literal["struct", "union", "class"]
    size: int
    fields: dict[str, Field]


class BaseType(Strict):
    size: int
    kind: Literal["void", "int", "float", "char", "bool"]
    signed: bool
    endian: Literal["little", "big"]


class Enum(Strict):
    size: int
    base: str
    constants: dict[str, int]


class Symbol(Strict):
    address: int
    type: Descriptor | None = None
    linkage_name: str = ""
    constant_data: str = ""


class Item(Strict):
    kind: Literal["dwarf", "symtab", "system-map"] | None = None
    name: str = ""
    hash_type: str = ""
    hash_value: str = ""


class Linux(Strict):
    symbols: list[Item] = []
    types: list[Item] = []


class Producer(msgspec.Struct):  # the schema allows it further keys
    name: str
    version: Annotated[str, msgspec.Meta(pattern=r"^[0-9.]+$")]


class Metadata(Strict):
    format: Annotated[str, msgspec.Meta(pattern=r"^6.[0-9]+.[0-9]+$")]
    producer: Producer
    linux: Linux


class File(Strict):
    metadata: Metadata
    base_types: dict[str, BaseType]
    user_types: dict[str, UserType]
    enums: dict[str, Enum]
    symbols: dict[str, Symbol]


def assert_fits_schema(data: bytes) -> None:
    """This raises where a document is not what Volatility's schema asks for."""
    msgspec.json.decode(data, type=File)


def as_json(document: Document) -> dict[str, Any]:
    """This is a document as a program reads it that knows nothing of its types."""
    data = msgspec.json.encode(document)
    assert_fits_schema(data)
    decoded: dict[str, Any] = json.loads(data)
    return decoded
