"""All types of one BTF at once, column by column: for those who convert the whole of it.

References: Linux include/uapi/linux/btf.h (``struct btf_type``: name, info, size or type).
"""

from array import array
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

__all__ = ["BtfTable"]

_WORD: Final = 4
_INFO: Final = 1
_SIZE_OR_TYPE: Final = 2
_BEHIND: Final = 3


class BtfTable:
    """This answers for every type by its id, without an object for each.

    Args:
        section: the type section.
        offsets: of each type from type 1 on, in bytes; up to the next one each is complete.

    Attributes:
        kinds: the kind of every type by its id; that of type 0 is 0, void.
    """

    __slots__ = ("_by_kind", "_starts", "_words", "kinds")

    def __init__(self, section: bytes, offsets: Sequence[int]) -> None:
        self._words = words = array("I", section[: len(section) // _WORD * _WORD])
        starts = [offset // _WORD for offset in offsets]
        self._starts = [0, *starts]
        self.kinds = bytes([0, *(words[start + _INFO] >> 24 & 0x1F for start in starts)])
        self._by_kind: defaultdict[int, list[int]] = defaultdict(list)
        for type_id, kind in enumerate(self.kinds):
            self._by_kind[kind].append(type_id)

    def __len__(self) -> int:
        return len(self._starts)

    def ids(self, *kinds: int) -> list[int]:
        """These are the types of some kinds, kind by kind, by rising id."""
        return [type_id for kind in kinds for type_id in self._by_kind.get(kind, ())]

    def name(self, type_id: int) -> int:
        """This is the offset of a type's name; 0 for anonymous ones."""
        return self._words[self._starts[type_id]]

    def vlen(self, type_id: int) -> int:
        """This is the number of a type's members, enumerators or parameters."""
        return self._words[self._starts[type_id] + _INFO] & 0xFFFF

    def kind_flag(self, type_id: int) -> bool:
        """This is bit 31 of a type's ``info``."""
        return bool(self._words[self._starts[type_id] + _INFO] >> 31)

    def size_or_type(self, type_id: int) -> int:
        """This is a type's size in bytes, or the id of the type that it is of."""
        return self._words[self._starts[type_id] + _SIZE_OR_TYPE]

    def behind(self, type_id: int, each: int, count: int | None = None) -> "array[int]":
        """These are the words behind the common three of a type.

        Args:
            type_id: of the type.
            each: words that one member, enumerator or parameter takes.
            count: of these; None for all of them.
        """
        start = self._starts[type_id] + _BEHIND
        return self._words[start : start + each * (self.vlen(type_id) if count is None else count)]
