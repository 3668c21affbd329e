"""BTF written record by record.

References: Linux Documentation/bpf/btf.rst: a header of 24 bytes, records of three words and what
their kind adds, and a table of NUL-terminated strings that begins with the empty one.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

__all__ = ["BtfBuilder", "Member", "pack_btf"]


@dataclass(frozen=True)
class Member:
    """A member of a struct or union; `bit_offset` wins over `offset`, `bits` makes a bit-field."""

    name: str
    type_id: int
    offset: int = 0
    bit_offset: int | None = None
    bits: int = 0


def pack_btf(types: bytes, strings: bytes, *, header_size: int = 24) -> bytes:
    """This puts a header in front of two sections."""
    header = struct.pack(
        "<HBBIIIII", 0xEB9F, 1, 0, header_size, 0, len(types), len(types), len(strings)
    )
    return header + bytes(header_size - 24) + types + strings


class BtfBuilder:
    """This collects records; each method returns the new type's id.

    Args:
        base: what is built goes on behind this one's ids and strings, as a module's does.
    """

    def __init__(self, base: Self | None = None) -> None:
        self.base = base
        self.types = bytearray()
        self.strings = bytearray(b"" if base else b"\0")
        self.first_string: int = base.first_string + len(base.strings) if base else 0
        self.next_id: int = base.next_id if base else 1

    def build(self) -> bytes:
        return pack_btf(bytes(self.types), bytes(self.strings))

    def string(self, text: str) -> int:
        """This is the offset of a string, which is added unless it is there."""
        if self.base is not None and (found := self.base.find_string(text)) is not None:
            return found
        found = self.find_string(text)
        if found is None:
            found = self.first_string + len(self.strings)
            self.strings += text.encode() + b"\0"
        return found

    def find_string(self, text: str) -> int | None:
        if not text:
            return 0
        at = bytes(self.strings).find(b"\0" + text.encode() + b"\0")
        return None if at < 0 else self.first_string + at + 1

    def record(
        self,
        kind: int,
        name: str,
        size_or_type: int,
        *words: int,
        vlen: int = 0,
        flag: bool = False,
    ) -> int:
        info = kind << 24 | vlen | (1 << 31 if flag else 0)
        values = (self.string(name), info, size_or_type, *words)
        self.types += struct.pack(f"<{len(values)}I", *(value & 0xFFFF_FFFF for value in values))
        self.next_id += 1
        return self.next_id - 1

    def int_(self, name: str, size: int, *, signed: bool = False) -> int:
        return self.record(1, name, size, (1 << 24 if signed else 0) | size * 8)

    def pointer(self, to: int) -> int:
        return self.record(2, "", to)

    def array(self, of: int, index: int, count: int) -> int:
        return self.record(3, "", 0, of, index, count)

    def struct_(self, name: str, size: int, members: Sequence[Member], *, kind: int = 4) -> int:
        flag = any(member.bits for member in members)
        words: list[int] = []
        for member in members:
            at = 8 * member.offset if member.bit_offset is None else member.bit_offset
            words += [
                self.string(member.name),
                member.type_id,
                at | member.bits << 24 if flag else at,
            ]
        return self.record(kind, name, size, *words, vlen=len(members), flag=flag)

    def union(self, name: str, size: int, members: Sequence[Member]) -> int:
        return self.struct_(name, size, members, kind=5)

    def enum(self, name: str, values: dict[str, int]) -> int:
        words = [word for text, value in values.items() for word in (self.string(text), value)]
        return self.record(6, name, 4, *words, vlen=len(values))

    def forward(self, name: str) -> int:
        return self.record(7, name, 0)

    def typedef(self, name: str, to: int) -> int:
        return self.record(8, name, to)

    def const(self, to: int) -> int:
        return self.record(10, "", to)

    def volatile(self, to: int) -> int:
        return self.record(9, "", to)

    def restrict(self, to: int) -> int:
        return self.record(11, "", to)

    def function_prototype(self, returns: int, parameters: dict[str, int]) -> int:
        words = [
            word for text, type_id in parameters.items() for word in (self.string(text), type_id)
        ]
        return self.record(13, "", returns, *words, vlen=len(parameters))

    def function(self, name: str, prototype: int) -> int:
        return self.record(12, name, prototype, vlen=1)

    def variable(self, name: str, type_id: int) -> int:
        return self.record(14, name, type_id, 1)

    def data_section(self, name: str, variables: Sequence[tuple[int, int, int]]) -> int:
        words = [word for one in variables for word in one]
        return self.record(15, name, 0, *words, vlen=len(variables))

    def float_(self, name: str, size: int) -> int:
        return self.record(16, name, size)

    def declaration_tag(self, name: str, to: int) -> int:
        return self.record(17, name, to, 0xFFFF_FFFF)

    def type_tag(self, name: str, to: int) -> int:
        return self.record(18, name, to)

    def enum64(self, name: str, values: dict[str, int]) -> int:
        words = [
            word
            for text, value in values.items()
            for word in (self.string(text), value & 0xFFFF_FFFF, value >> 32)
        ]
        return self.record(19, name, 8, *words, vlen=len(values))
