"""Red-black trees of the kernel's, walked in their order while the kernel changes them.

References: Linux include/linux/rbtree_types.h, lib/rbtree.c (``rb_first``, ``rb_next``).
"""

from typing import Final

from qvmi.addr import Va
from qvmi.errors import MemoryFault
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap
from qvmi.semantics.linux.structures.effort import Effort
from qvmi.semantics.linux.structures.list import Implausible
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["RbTree"]

_MAX_DEPTH: Final = 128
"""A balanced tree of as many nodes as there can be has twice the logarithm of their number."""
_MAX_GAPS: Final = 100


class RbTree:
    """This walks the red-black trees of one kernel.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.

    Raises:
        SymbolsError: the profile lacks what the trees need, or describes no possible layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols) -> None:
        left = field_offset(symbols, "rb_node", "rb_left")
        right = field_offset(symbols, "rb_node", "rb_right")
        self._read = compile_reader(space, (left, "Q"), (right, "Q"))

    def nodes(self, root: int, structure: str, effort: Effort) -> tuple[list[int], list[Gap]]:
        """These are the addresses of all nodes in the tree's order, and what could not be followed.

        Args:
            root: address of the topmost node, 0 for an empty tree.
            structure: its name for gaps.
            effort: what it may cost.

        Raises:
            Spent: enough was looked at.
        """
        found: list[int] = []
        gaps: list[Gap] = []
        seen: set[int] = set()
        above: list[tuple[int, int]] = []
        node = root
        while (node or above) and len(gaps) < _MAX_GAPS:
            if not node:
                done, node = above.pop()
                found.append(done)
                continue
            effort.spend(1)
            try:
                left, right = self._children(node, seen, len(above))
            except (MemoryFault, Implausible) as error:
                gaps.append(Gap(structure, Va(node), str(error)))
                node = 0
            else:
                above.append((node, right))
                node = left
        return found, gaps

    def last(self, root: int) -> int:
        """This is the last node in the tree's order, 0 of an empty tree. Corresponds to ``rb_last``.

        Raises:
            Implausible: the way there is longer than in any tree.
            MemoryFault: a node cannot be read.
        """
        node, following = 0, root
        for _ in range(_MAX_DEPTH):
            if not following:
                return node
            node, following = following, self._read(following)[1]
        raise Implausible("the tree returns to nodes already seen")

    def _children(self, node: int, seen: set[int], depth: int) -> tuple[int, int]:
        if node in seen or depth > _MAX_DEPTH:
            raise Implausible("the tree returns to nodes already seen")
        seen.add(node)
        left, right = self._read(node)
        return left, right
