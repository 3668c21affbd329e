"""Bytes as values of the kernel's own types, without drgn: what a variable holds, as plain data.

References: Linux Documentation/bpf/btf.rst, section 2.2 (INT's encoding, ARRAY, STRUCT with ``kind_flag``,
ENUM).
"""

from collections.abc import Iterator
from typing import Final, TypeAlias

from qvmi.errors import CorruptTable
from qvmi.symbols.btf import Btf, BtfKind, BtfMember, BtfType

__all__ = ["BtfValues", "Value"]

Value: TypeAlias = "int | bool | str | list[Value] | dict[str, Value] | None"
"""A pointer is its address, an enumeration its number; what has no size is None."""

_POINTER_SIZE: Final = 8
_MAX_DEPTH: Final = 32
"""Structs nest some ten levels deep; deeper is a loop."""
_MAX_VALUES: Final = 1 << 17
"""Of one variable, members and what they hold: the largest per-CPU ones have a few thousand."""
_SIGNED, _BOOL = 1, 4
"""``BTF_INT_SIGNED`` and ``BTF_INT_BOOL``."""
_WORDS: Final = {BtfKind.STRUCT: "struct ", BtfKind.UNION: "union ", BtfKind.ENUM: "enum "}
_WORDS_BEFORE: Final = {**_WORDS, BtfKind.ENUM64: "enum ", BtfKind.FWD: "struct "}
_QUALIFIERS: Final = frozenset(
    {BtfKind.VOLATILE, BtfKind.CONST, BtfKind.RESTRICT, BtfKind.TYPE_TAG}
)


class BtfValues:
    """This reads values by the types of one BTF.

    Args:
        btf: of the kernel.

    Every method raises CorruptTable where the types contradict themselves.
    """

    def __init__(self, btf: Btf) -> None:
        self._btf = btf
        self._left = 0

    def name(self, type_id: int, depth: int = 0) -> str:
        """This is a type as C writes it, such as ``struct task_struct *``."""
        self._require_depth(type_id, depth)
        record = self._btf.type(type_id)
        if record.kind is BtfKind.ARRAY:
            element, _, count = self._btf.words(record, 3)
            return f"{self.name(element, depth + 1)}[{count}]"
        if record.kind is BtfKind.FUNC_PROTO:
            return "function"
        if record.kind in _QUALIFIERS:
            return self.name(record.size_or_type, depth + 1)
        if record.kind is BtfKind.PTR:
            target = self.name(record.size_or_type, depth + 1)
            return f"{target}*" if target.endswith("*") else f"{target} *"
        return _WORDS_BEFORE.get(record.kind, "") + (record.name or "(anonymous)")

    def size(self, type_id: int, depth: int = 0) -> int:
        """This is how many bytes a value takes; 0 where it has no size."""
        self._require_depth(type_id, depth)
        record = self._btf.type(self._btf.resolved(type_id))
        if record.kind is BtfKind.PTR:
            return _POINTER_SIZE
        if record.kind is BtfKind.ARRAY:
            element, _, count = self._btf.words(record, 3)
            return count * self.size(element, depth + 1)
        if record.kind in {BtfKind.VOID, BtfKind.FWD, BtfKind.FUNC, BtfKind.FUNC_PROTO}:
            return 0
        return record.size_or_type

    def value(self, type_id: int, data: bytes) -> Value:
        """This is what the bytes hold, which must be as many as the type takes."""
        self._left = _MAX_VALUES
        return self._value(type_id, data, 0)

    def _value(self, type_id: int, data: bytes, depth: int) -> Value:
        self._require_depth(type_id, depth)
        self._count(1)
        record = self._btf.type(self._btf.resolved(type_id))
        if record.kind in {BtfKind.STRUCT, BtfKind.UNION}:
            return dict(self._members(record, data, depth + 1))
        if record.kind is BtfKind.ARRAY:
            return self._array(record, data, depth + 1)
        size = self.size(type_id)
        if not size:
            return None
        return self._number(record, int.from_bytes(data[:size], "little"), 8 * size)

    def _array(self, record: BtfType, data: bytes, depth: int) -> Value:
        element, _, count = self._btf.words(record, 3)
        size = self.size(element)
        if count > self._left:
            raise CorruptTable("BTF", f"an array of {count} values")
        parts = (data[at : at + size] for at in range(0, count * size, size or 1))
        return [self._value(element, part, depth) for part in parts]

    def _members(self, record: BtfType, data: bytes, depth: int) -> Iterator[tuple[str, Value]]:
        """This iterates the members; those of anonymous ones are the struct's own."""
        self._count(record.vlen)
        for member in self._btf.members(record):
            at = member.bit_offset // 8
            if member.bit_size:
                yield member.name, self._bit_field(member, data)
                continue
            value = self._value(member.type_id, data[at : at + self.size(member.type_id)], depth)
            if member.name:
                yield member.name, value
            elif isinstance(value, dict):
                yield from value.items()

    def _bit_field(self, member: BtfMember, data: bytes) -> Value:
        start, width = member.bit_offset, member.bit_size
        held = int.from_bytes(data[start // 8 : (start + width + 7) // 8], "little")
        record = self._btf.type(self._btf.resolved(member.type_id))
        return self._number(record, held >> start % 8 & ((1 << width) - 1), width)

    def _number(self, record: BtfType, value: int, bits: int) -> Value:
        if record.kind is not BtfKind.INT:
            return value
        encoding = self._btf.words(record, 1)[0] >> 24 & 0xF
        if encoding & _BOOL:
            return bool(value)
        return value - (1 << bits) if encoding & _SIGNED and value >> bits - 1 else value

    def _count(self, values: int) -> None:
        self._left -= values
        if self._left < 0:
            raise CorruptTable("BTF", f"a variable of more than {_MAX_VALUES} values")

    def _require_depth(self, type_id: int, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise CorruptTable("BTF", f"type {type_id} is made of more than {_MAX_DEPTH} others")
