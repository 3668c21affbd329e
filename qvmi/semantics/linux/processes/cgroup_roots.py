"""The hierarchies of cgroups, and the program that an old one has the kernel run when a cgroup is left empty.

References: Linux include/linux/cgroup-defs.h (``struct cgroup_root``), kernel/cgroup/cgroup.c
(``cgroup_roots``), kernel/cgroup/cgroup-v1.c (``cgroup1_release_agent``).
"""

from typing import Any, Final

from qvmi.addr import Va
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.fs.d_path import text_of
from qvmi.semantics.linux.structures.list import Implausible, ListShape, ListWalk, walk_list
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.semantics.rows.containers import CgroupHierarchy
from qvmi.symbols.layout import Symbols, address, field_offset

__all__ = ["CgroupRoots"]

_MAX_ROOTS: Final = 4096
"""Hierarchies: one for each controller, and some with a name alone."""
_MAX_PATH: Final = 4096
"""``PATH_MAX``."""
_MAX_NAME: Final = 64
"""``MAX_CGROUP_ROOT_NAMELEN``."""


class CgroupRoots:
    """This lists the hierarchies of one kernel.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.

    Raises:
        SymbolsError: the profile lacks what this needs, or describes no possible layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols) -> None:
        self._space = space
        self._roots = address(symbols, "cgroup_roots")
        link = field_offset(symbols, "cgroup_root", "root_list")
        self._agent = field_offset(symbols, "cgroup_root", "release_agent_path")
        self._name = field_offset(symbols, "cgroup_root", "name")
        self._shape = ListShape(
            "cgroup_root.root_list",
            link,
            compile_reader(
                space,
                (link, "Q"),
                (link + 8, "Q"),
                (field_offset(symbols, "cgroup_root", "hierarchy_id"), "i"),
            ),
            self._visit,
            _MAX_ROOTS,
        )

    def hierarchies(self) -> ListWalk[CgroupHierarchy]:
        """This lists them.

        Raises:
            WalkFailed: the list of them cannot be walked at all.
        """
        return walk_list(self._space, self._roots, self._shape)

    def _visit(self, root: Va, values: tuple[Any, ...]) -> CgroupHierarchy:
        if values[2] < 0:
            raise Implausible(f"a hierarchy of the number {values[2]}")
        name = self._space.read_string(Va(root + self._name), _MAX_NAME)
        agent = self._space.read_string(Va(root + self._agent), _MAX_PATH)
        return CgroupHierarchy(values[2], text_of(name), text_of(agent), root)
