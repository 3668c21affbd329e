"""The layout of single types, out of the kernel's or a module's BTF.

References: Linux Documentation/bpf/btf.rst, section 2.2 (kinds); tools: pahole prints the same.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Final

from qvmi.errors import CorruptTable
from qvmi.symbols.btf import Btf, BtfKind, BtfMember, BtfType
from qvmi.symbols.btf_declarations import Declarations
from qvmi.symbols.btf_table import BtfTable
from qvmi.symbols.type_layout import Constant, MemberLayout, TypeKind, TypeLayout, TypeName

__all__ = ["BtfLayouts"]

_MAX_DEPTH: Final = 16
"""Anonymous structs nest two or three levels deep, arrays as well; deeper is a loop."""
_MAX_MEMBERS: Final = 10_000
"""``task_struct`` has about 250, those of anonymous structs in it included."""
_POINTER_SIZE: Final = 8
_WORD_BITS: Final = 32

_KINDS: Final = {
    BtfKind.STRUCT: TypeKind.STRUCT,
    BtfKind.UNION: TypeKind.UNION,
    BtfKind.TYPEDEF: TypeKind.TYPEDEF,
    BtfKind.ENUM: TypeKind.ENUM,
    BtfKind.ENUM64: TypeKind.ENUM,
    BtfKind.INT: TypeKind.BASE,
    BtfKind.FLOAT: TypeKind.BASE,
}
"""The kinds that have names of their own, in the order in which a bare name is looked for."""
_COMPOUND: Final = frozenset({BtfKind.STRUCT, BtfKind.UNION})
_ENUMS: Final = frozenset({BtfKind.ENUM, BtfKind.ENUM64})
_SIZED: Final = _COMPOUND | _ENUMS | {BtfKind.INT, BtfKind.FLOAT}


class BtfLayouts:
    """This answers for the types that one BTF itself defines.

    Args:
        btf: of the kernel, or of a module.
        module: whose it is; empty for the kernel.
    """

    def __init__(self, btf: Btf, module: str = "") -> None:
        self._btf = btf
        self._module = module
        self._declarations = Declarations(btf)
        self._left = 0

    def find(self, wanted: TypeName) -> TypeLayout | None:
        """This is the first type of a name, None where there is none.

        Raises:
            CorruptTable: the types contradict themselves.
        """
        type_id = self._id_of(wanted)
        if type_id is None:
            return None
        self._left = _MAX_MEMBERS
        self._declarations.begin()
        record = self._btf.type(type_id)
        inner_id = self._btf.resolved(type_id)
        inner = self._btf.type(inner_id)
        is_typedef = record.kind is BtfKind.TYPEDEF
        return TypeLayout(
            name=record.name,
            kind=_KINDS[record.kind],
            size=self._size(inner_id),
            type=self._declarations.of(record.size_or_type) if is_typedef else "",
            members=tuple(self._members(inner_id, inner)),
            constants=tuple(self._constants(inner_id, inner)),
            module=self._module,
        )

    @cached_property
    def _table(self) -> BtfTable:
        return self._btf.table()

    def _id_of(self, wanted: TypeName) -> int | None:
        offset = self._btf.strings.offset_of(wanted.name)
        if not offset:  # anonymous ones are many
            return None
        for kind, shown in _KINDS.items():
            if wanted.kind in {None, shown}:
                found = self._ids[kind].get(offset)
                if found is not None:
                    return found
        return None

    @cached_property
    def _ids(self) -> dict[BtfKind, dict[int, int]]:
        """The first type of each kind and name, by the name's offset."""
        table, before = self._table, self._btf.own_ids().start - 1  # the table counts from 1
        return {
            kind: {table.name(one): one + before for one in reversed(table.ids(kind))}
            for kind in _KINDS
        }

    def _members(
        self, type_id: int, record: BtfType, base_bits: int = 0, depth: int = 0
    ) -> Iterator[MemberLayout]:
        """These are the members of a struct or union; of other types there are none."""
        if record.kind not in _COMPOUND:
            return
        if depth > _MAX_DEPTH:
            raise CorruptTable("BTF", f"{record.name}: anonymous members nest too deep")
        for member in self._btf.owner(type_id).members(record):
            self._left -= 1
            if self._left < 0:
                raise CorruptTable("BTF", f"{record.name} has {_MAX_MEMBERS} members and more")
            yield self._member(member, base_bits, depth)

    def _member(self, member: BtfMember, base_bits: int, depth: int) -> MemberLayout:
        inner_id = self._btf.resolved(member.type_id)
        inner = self._btf.type(inner_id)
        at, bits = base_bits + member.bit_offset, member.bit_size
        if not bits and inner.kind is BtfKind.INT:
            shift, bits = self._narrow(inner_id, inner)
            at += shift
        own = self._btf.type(member.type_id)
        # A member without a name may be of a struct that has one (``-fms-extensions``).
        is_anonymous = not member.name or (own.kind in _COMPOUND and not own.name)
        return MemberLayout(
            name=member.name,
            type=self._declarations.of(member.type_id),
            offset=at // 8,
            size=self._size(inner_id),
            bit_offset=at % 8 if bits else 0,
            bit_size=bits,
            members=tuple(self._members(inner_id, inner, at, depth + 1)) if is_anonymous else (),
        )

    def _narrow(self, type_id: int, record: BtfType) -> tuple[int, int]:
        """This is where the bits of an integer begin, and how many if not all: bit-fields of old BTF."""
        encoding = self._btf.owner(type_id).words(record, 1)[0]
        shift, bits = encoding >> 16 & 0xFF, encoding & 0xFF
        return (0, 0) if bits == 8 * record.size_or_type else (shift, bits)

    def _size(self, type_id: int) -> int:
        """This is the size of a type in bytes, 0 where it has none."""
        count = 1
        for _ in range(_MAX_DEPTH):
            type_id = self._btf.resolved(type_id)
            record = self._btf.type(type_id)
            if record.kind is not BtfKind.ARRAY:
                size = record.size_or_type if record.kind in _SIZED else 0
                return count * (_POINTER_SIZE if record.kind is BtfKind.PTR else size)
            type_id, _, elements = self._btf.owner(type_id).words(record, 3)
            count *= elements
        raise CorruptTable("BTF", f"type {type_id} is an array of too many dimensions")

    def _constants(self, type_id: int, record: BtfType) -> Iterator[Constant]:
        """These are the constants of an enumeration; of other types there are none."""
        if record.kind not in _ENUMS:
            return
        each = 2 if record.kind is BtfKind.ENUM else 3
        words = self._btf.owner(type_id).words(record, each * record.vlen)
        signed = record.kind_flag or (each == 2 and not self._tells_signs)  # noqa: PLR2004 - as above
        for at in range(0, len(words), each):
            value = sum(
                word << _WORD_BITS * place for place, word in enumerate(words[at + 1 : at + each])
            )
            sign = 1 << (_WORD_BITS * (each - 1) - 1) if signed else 0
            yield Constant(self._btf.string(words[at]), value - 2 * (value & sign))

    @cached_property
    def _tells_signs(self) -> bool:
        """Whether enumerations say if their values are signed, as they do since 6.0."""
        table = self._table if self._btf.base is None else self._btf.base.table()
        narrow = table.ids(BtfKind.ENUM)
        return bool(table.ids(BtfKind.ENUM64)) or any(map(table.kind_flag, narrow))
