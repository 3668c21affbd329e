"""Types for those who read memory by hand: members with offsets and sizes, holes, constants."""

from collections.abc import Iterator
from enum import StrEnum

import msgspec

__all__ = ["Constant", "Hole", "MemberLayout", "TypeKind", "TypeLayout", "TypeName"]


class TypeKind(StrEnum):
    """This is what a type is."""

    STRUCT = "struct"
    UNION = "union"
    ENUM = "enum"
    TYPEDEF = "typedef"
    BASE = "base"


class TypeName(msgspec.Struct, frozen=True, gc=False):
    """This is the name of a type as it is asked for.

    Args:
        name: without ``struct`` and its like.
        kind: that it must be of; None for any.
    """

    name: str
    kind: TypeKind | None

    @classmethod
    def of(cls, text: str) -> "TypeName":
        """This takes ``struct`` and its like from the front of a name."""
        first, _, rest = text.strip().partition(" ")
        if rest and first in {TypeKind.STRUCT, TypeKind.UNION, TypeKind.ENUM}:
            return cls(rest.strip(), TypeKind(first))
        return cls(text.strip(), None)


class MemberLayout(msgspec.Struct, frozen=True):
    """This is one member of a struct or union.

    Args:
        name: empty for anonymous structs and unions.
        type: as C writes it, such as ``struct list_head *``, ``char[16]`` or ``struct {...}``.
        offset: from the start of the whole type, in bytes.
        size: of its type in bytes; 0 where that is not known, and of flexible arrays.
        bit_offset: of a bit-field, within the byte at ``offset``; 0 for others.
        bit_size: width of a bit-field; 0 for others.
        members: of a struct or union without a name of its own, from the start of the whole type too.
    """

    name: str
    type: str
    offset: int
    size: int
    bit_offset: int = 0
    bit_size: int = 0
    members: tuple["MemberLayout", ...] = ()

    @property
    def end(self) -> int:
        """This is the first byte behind it."""
        if not self.bit_size:
            return self.offset + self.size
        return self.offset + -(-(self.bit_offset + self.bit_size) // 8)


class Constant(msgspec.Struct, frozen=True, gc=False):
    """This is one constant of an enumeration."""

    name: str
    value: int


class Hole(msgspec.Struct, frozen=True, gc=False):
    """These are bytes of a struct that are no member's."""

    offset: int
    size: int


class TypeLayout(msgspec.Struct, frozen=True):
    """This is one type.

    Args:
        name: without ``struct`` and its like.
        kind: what it is.
        size: in bytes.
        type: what a typedef stands for; empty for others.
        members: of a struct or union, or of the one that a typedef stands for.
        constants: of an enumeration, or of the one that a typedef stands for.
        module: that brings the type; empty for the kernel itself.
        source: of a type that was added: the file; empty for what the guest tells itself.
    """

    name: str
    kind: TypeKind
    size: int
    type: str = ""
    members: tuple[MemberLayout, ...] = ()
    constants: tuple[Constant, ...] = ()
    module: str = ""
    source: str = ""

    @property
    def holes(self) -> tuple[Hole, ...]:
        """These are the bytes between members, and behind the last one."""
        return tuple(self._holes()) if self.members else ()

    def _holes(self) -> Iterator[Hole]:
        end = 0
        for member in sorted(self.members, key=lambda one: one.offset):
            if member.offset > end:
                yield Hole(end, member.offset - end)
            end = max(end, member.end)
        if self.size > end:
            yield Hole(end, self.size - end)
