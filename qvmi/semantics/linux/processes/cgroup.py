"""Cgroups of processes: which group each is in, in each hierarchy.

References: Linux kernel/cgroup/cgroup.c (``proc_cgroup_show``, ``link_css_set``),
kernel/cgroup/cgroup-internal.h (``struct cgrp_cset_link``), include/linux/cgroup-defs.h,
fs/kernfs/dir.c (``kernfs_path_from_node``). ``kernfs_node.parent`` became ``__parent`` in 6.15
(633488947ef6).
"""

from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Any, Final, NamedTuple

from qvmi.addr import Va
from qvmi.errors import MemoryFault, WalkFailed
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap, Process
from qvmi.semantics.linux.fs.d_path import text_of
from qvmi.semantics.linux.processes.container import Container, container_of
from qvmi.semantics.linux.structures.effort import Effort
from qvmi.semantics.linux.structures.list import Implausible, ListShape, ListWalk, walk_list
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.semantics.linux.tasks.each_process import of_each
from qvmi.semantics.linux.tasks.task import Tasks
from qvmi.semantics.rows.containers import Cgroup
from qvmi.symbols.layout import Symbols, address, field_offset

__all__ = ["CgroupTable"]

_STRUCTURE: Final = "task_struct.cgroups"
_ROWS: Final = 1 << 20
"""Rows, and other structures, that one question may cost."""
_MAX_HIERARCHIES: Final = 256
"""A kernel has a dozen controllers, and as many hierarchies; named ones may be added."""
_MAX_PATH: Final = 4096
"""``PATH_MAX``, beyond which the kernel does not show a path either."""
_NAME_MAX: Final = 255
_LETTERS_A_STEP: Final = 8
"""Letters of paths that cost as much as one structure elsewhere."""
_MAX_CONTROLLERS: Final = 32
"""Bits of ``cgroup_root.subsys_mask``."""
_ROOT_NAME_SIZE: Final = 64
"""``MAX_CGROUP_ROOT_NAMELEN``."""
_PF_EXITING: Final = 4
_ONLINE: Final = 2
"""``CSS_ONLINE`` of ``cgroup_subsys_state.flags``."""
_POINTER: Final = Struct("<Q")


class _Hierarchy(NamedTuple):
    """This is a tree of cgroups. Corresponds to ``struct cgroup_root``.

    Args:
        number: 0 for cgroup v2.
        controllers: as ``/proc/PID/cgroup`` names them.
    """

    number: int
    controllers: str


class _Place(NamedTuple):
    """This is a cgroup's place in its hierarchy, and the container that this tells."""

    path: str
    container: Container


class CgroupTable:
    """This tells the cgroups of the processes of one kernel.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        tasks: tells which processes are still there.

    Raises:
        SymbolsError: the profile lacks what cgroups need, or describes no possible layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols, *, tasks: Tasks) -> None:
        self._tasks = tasks
        self._memory = _Memory(space, symbols)

    def of(self, processes: Iterable[Process]) -> ListWalk[Cgroup]:
        """This tells the cgroups of processes, a row for each hierarchy, the oldest first."""
        effort = Effort(_ROWS)
        look = _Look(self._memory, effort)
        return of_each(processes, look.at, structure=_STRUCTURE, tasks=self._tasks, effort=effort)


class _Memory:
    """This reads what cgroups are made of.

    Attributes:
        task: reads the pid, flags and ``css_set`` of a ``task_struct``.
        cgroup: reads the ``css`` flags, ``kernfs_node`` and ``cgroup_root`` of a ``cgroup``.
        node: reads the id, parent and name of a ``kernfs_node``.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols) -> None:
        self._space = space
        self.task = compile_reader(
            space,
            (field_offset(symbols, "task_struct", "pid"), "I"),
            (field_offset(symbols, "task_struct", "flags"), "I"),
            (field_offset(symbols, "task_struct", "cgroups"), "Q"),
        )
        css = field_offset(symbols, "cgroup", "self")
        self.cgroup = compile_reader(
            space,
            (css + field_offset(symbols, "cgroup_subsys_state", "flags"), "I"),
            (field_offset(symbols, "cgroup", "kn"), "Q"),
            (field_offset(symbols, "cgroup", "root"), "Q"),
        )
        self.node = compile_reader(
            space,
            (field_offset(symbols, "kernfs_node", "id"), "Q"),
            (field_offset(symbols, "kernfs_node", "parent", "__parent"), "Q"),
            (field_offset(symbols, "kernfs_node", "name"), "Q"),
        )
        self._root = compile_reader(
            space,
            (field_offset(symbols, "cgroup_root", "hierarchy_id"), "I"),
            (field_offset(symbols, "cgroup_root", "subsys_mask"), "I"),
            (field_offset(symbols, "cgroup_root", "name"), f"{_ROOT_NAME_SIZE}s"),
        )
        self._links = field_offset(symbols, "css_set", "cgrp_links")
        self._link_shape = _link_shape(space, symbols)
        self._read_pointer = space.unpacker(_POINTER)
        self._controllers = address(symbols, "cgroup_subsys")
        self._controller_name = field_offset(symbols, "cgroup_subsys", "legacy_name")
        self._unified_seen = symbols.find("cgrp_dfl_visible")

    def cgroups(self, css_set: int) -> list[int]:
        """These are the addresses of the cgroups that a ``css_set`` stands for."""
        try:
            walk = walk_list(self._space, Va(css_set + self._links), self._link_shape)
        except WalkFailed as error:
            raise Implausible(str(error)) from error
        if walk.gaps:
            raise Implausible(f"{walk.gaps[0].structure}: {walk.gaps[0].reason}")
        return list(walk.rows.values())

    def hierarchy(self, root: int) -> _Hierarchy | None:
        """This is what a hierarchy is called; None for that of cgroup v2 before it is mounted."""
        number, mask, name = self._root(root)
        if not number and not self._shows_unified():
            return None
        words = [self._controller(bit) for bit in range(_MAX_CONTROLLERS) if mask >> bit & 1]
        if not number:
            words = []
        own, end, _ = name.partition(b"\0")
        if not end:
            raise Implausible("the name of a hierarchy without an end")
        return _Hierarchy(number, ",".join([*words, f"name={text_of(own)}"] if own else words))

    def name(self, at: int) -> bytes:
        """This is the name of a ``kernfs_node``."""
        return self._space.read_string(Va(at), _NAME_MAX + 1)

    def _controller(self, bit: int) -> str:
        controller = self._read_pointer(self._controllers + bit * _POINTER.size)[0]
        name = self._read_pointer(controller + self._controller_name)[0]
        return text_of(self.name(name))

    def _shows_unified(self) -> bool:
        return self._unified_seen is None or self._space.read(self._unified_seen, 1) != b"\0"


class _Look:
    """This is one look at the cgroups of processes.

    Args:
        memory: reads them.
        effort: what the look may cost.
    """

    def __init__(self, memory: _Memory, effort: Effort) -> None:
        self._memory = memory
        self._effort = effort
        self._hierarchies: dict[int, _Hierarchy | None] = {}
        self._places: dict[tuple[int, int], _Place] = {}

    def at(self, process: Process, gaps: list[Gap]) -> tuple[Cgroup, ...]:
        """This makes the rows of one process, if it stays in its cgroups meanwhile.

        As long as it does they are not freed, and neither are those above them: what is wrong with
        one is no moment of change, and a gap.
        """
        before = self._memory.task(process.address)
        pid, flags, css_set = before
        if pid != process.pid:
            raise Implausible(f"its task has the pid {pid} now")
        rows: list[Cgroup] = []
        for cgroup in self._memory.cgroups(css_set):
            try:
                rows += self._row(process, flags, cgroup)
            except (MemoryFault, Implausible) as error:
                why = f"the cgroup at {cgroup:#x} of process {process.pid}: {error}"
                gaps.append(Gap("struct cgroup", process.address, why))
        if self._memory.task(process.address)[2] != css_set:
            raise Implausible("its cgroups change all the time")
        return tuple(sorted(rows, key=lambda row: row.hierarchy))

    def _row(self, process: Process, flags: int, cgroup: int) -> Iterator[Cgroup]:
        """This makes the row of one cgroup, and none of cgroup v2 before it is mounted."""
        self._effort.spend(1)
        css_flags, node, root = self._memory.cgroup(cgroup)
        hierarchy = self._hierarchy(root)
        if hierarchy is None:
            return
        deleted = not css_flags & _ONLINE
        place = self._place(node)
        if hierarchy.number and flags & _PF_EXITING:
            # What is dead is in the root of old hierarchies, whatever its css_set still says.
            place, deleted = _Place("/", container_of("/")), False
        yield Cgroup(
            process.pid,
            process.name,
            hierarchy.number,
            hierarchy.controllers,
            place.path,
            deleted,
            *place.container,
            Va(cgroup),
        )

    def _hierarchy(self, root: int) -> _Hierarchy | None:
        if root not in self._hierarchies:
            self._effort.spend(_MAX_CONTROLLERS)
            self._hierarchies[root] = self._memory.hierarchy(root)
        return self._hierarchies[root]

    def _place(self, node: int) -> _Place:
        """This is the place of a cgroup by its ``kernfs_node``, whose id no other ever has."""
        number = self._memory.node(node)[0]
        known = self._places.get((node, number))
        if known is None:
            path = self._path(node)
            known = self._places[node, number] = _Place(path, container_of(path))
        return known

    def _path(self, node: int) -> str:
        """This climbs to the root of the hierarchy, which has no name and no parent."""
        names: list[bytes] = []
        room = _MAX_PATH
        here = node
        while True:
            _, parent, name = self._memory.node(here)
            if not parent:
                break
            names.append(self._memory.name(name))
            room -= len(names[-1]) + 1
            if room < 0:
                raise Implausible(f"a path of more than {_MAX_PATH} bytes from {node:#x} up")
            here = parent
        self._effort.spend(len(names) + (_MAX_PATH - room) // _LETTERS_A_STEP)
        return "/" + text_of(b"/".join(reversed(names)))


def _link_shape(space: AddressSpace, symbols: Symbols) -> ListShape[int]:
    """This says how the cgroups of a ``css_set`` are walked."""
    link = field_offset(symbols, "cgrp_cset_link", "cgrp_link")
    read = compile_reader(
        space,
        (link, "Q"),
        (link + 8, "Q"),
        (field_offset(symbols, "cgrp_cset_link", "cgrp"), "Q"),
    )

    def visit(_: Va, values: tuple[Any, ...]) -> int:
        cgroup: int = values[2]
        return cgroup

    return ListShape("css_set.cgrp_links", link, read, visit, _MAX_HIERARCHIES)
