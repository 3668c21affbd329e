"""Types of BTF as C writes them.

References: Linux tools/lib/bpf/btf_dump.c (``btf_dump_emit_type_chain``); C11 6.7.6 (declarators).
"""

from typing import Final

from qvmi.errors import CorruptTable
from qvmi.symbols.btf import Btf, BtfKind, BtfType

__all__ = ["Declarations"]

_MAX_STEPS: Final = 2000
"""Types that one name is made of, all parameters of functions included; kernels have up to some 100."""
_MAX_ALL_STEPS: Final = 100_000
"""The same of all members of a struct together; ``task_struct`` takes some 1,000."""
_QUALIFIERS: Final = {
    BtfKind.CONST: "const",
    BtfKind.VOLATILE: "volatile",
    BtfKind.RESTRICT: "restrict",
}
_TAGGED: Final = {
    BtfKind.STRUCT: "struct",
    BtfKind.UNION: "union",
    BtfKind.FWD: "struct",
    BtfKind.ENUM: "enum",
    BtfKind.ENUM64: "enum",
}
_NAMED: Final = frozenset({BtfKind.VOID, BtfKind.INT, BtfKind.FLOAT, BtfKind.TYPEDEF})


class Declarations:
    """This writes types.

    Args:
        btf: that defines them.
    """

    def __init__(self, btf: Btf) -> None:
        self._btf = btf
        self._left = 0
        self._left_of_all = 0

    def begin(self) -> None:
        """This begins a new struct, with what its members may take."""
        self._left_of_all = _MAX_ALL_STEPS

    def of(self, type_id: int) -> str:
        """This is a type without a name that is declared by it, such as ``void (*)(int)``.

        Raises:
            CorruptTable: it is made of itself, of too many others, or of what is no type.
        """
        self._left = allowed = min(_MAX_STEPS, self._left_of_all)
        try:
            return self._of(type_id)
        finally:
            self._left_of_all -= allowed - self._left

    def _of(self, type_id: int) -> str:
        inner, qualifiers = "", list[str]()
        while self._left > 0:
            self._left -= 1
            record = self._btf.type(type_id)
            target = record.size_or_type
            if record.kind is BtfKind.PTR:
                inner = " ".join(["*", *qualifiers]) + (" " if qualifiers and inner else "") + inner
                qualifiers = []
            elif record.kind in _QUALIFIERS:
                qualifiers.append(_QUALIFIERS[record.kind])
            elif record.kind is BtfKind.ARRAY:
                target, _, count = self._words(type_id, record, 3)
                inner = f"{_in_parentheses(inner)}[{count}]"
            elif record.kind is BtfKind.FUNC_PROTO:
                inner = f"{_in_parentheses(inner)}({self._parameters(type_id, record)})"
            elif record.kind is not BtfKind.TYPE_TAG:
                between = "" if not inner or inner.startswith("[") else " "
                return " ".join([*qualifiers, _base(record)]) + between + inner
            type_id = target
        raise CorruptTable("BTF", f"type {type_id} is made of itself, or of too many others")

    def _parameters(self, type_id: int, record: BtfType) -> str:
        words = self._words(type_id, record, 2 * record.vlen)
        types = words[1::2]
        names = ["..." if not one else self._of(one) for one in types]
        return ", ".join(names) or "void"

    def _words(self, type_id: int, record: BtfType, count: int) -> tuple[int, ...]:
        return self._btf.owner(type_id).words(record, count)


def _in_parentheses(inner: str) -> str:
    return f"({inner})" if inner.startswith("*") else inner


def _base(record: BtfType) -> str:
    if record.kind in _NAMED:
        return record.name
    tag = _TAGGED.get(record.kind)
    if tag is None:
        raise CorruptTable("BTF", f"{record.kind.name} {record.name!r} is no type")
    if record.kind is BtfKind.FWD and record.kind_flag:
        tag = "union"
    return f"{tag} {record.name or '{...}'}"
