"""Memory mappings of processes: ``vm_area_struct``, and the tree or list they are on.

References: Linux include/linux/mm_types.h, include/linux/mm.h (``VM_READ`` to ``VM_MAYSHARE``),
fs/proc/task_mmu.c (``show_map_vma``: what is shown, and how what has no file is called). The list
and the rb-tree gave way to a maple tree in 6.1 (763ecb035029).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from struct import Struct
from typing import Final

from qvmi.addr import PAGE_SIZE, Va
from qvmi.errors import MemoryFault, WalkFailed
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap, MemoryMapping, Process
from qvmi.semantics.linux.fs.d_path import Paths
from qvmi.semantics.linux.fs.path_memo import KnownPaths
from qvmi.semantics.linux.processes.mapping_name import Around, MappingNames, Vma
from qvmi.semantics.linux.structures.effort import Effort, Spent
from qvmi.semantics.linux.structures.list import Implausible, ListWalk
from qvmi.semantics.linux.structures.maple_tree import LAST_INDEX, MapleTree, Range
from qvmi.semantics.linux.structures.rbtree import RbTree
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.semantics.linux.tasks.task import Tasks
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["Mappings"]

_STRUCTURE: Final = "mm_struct"
_WALKS: Final = 16
"""A map that was not whole in so many walks is looked at no more; each takes some 0.1 ms. An emulated vCPU
may wait in the midst of a change for that long."""
_RETRIES: Final = 16
"""Looks at one mapping that is being changed; each takes some microseconds."""
_MAX_GAPS: Final = 1000
"""A map with so many wrong entries is none."""
_MAX_TROUBLE: Final = 2000
"""Gaps of all maps together: each is looked at up to 256 times, which takes some milliseconds."""
_WRITER_LOCKED: Final = 1
"""``RWSEM_WRITER_LOCKED`` (kernel/locking/rwsem.c)."""
_READ, _WRITE, _EXECUTE, _MAY_SHARE = 1, 2, 4, 0x80
_POINTER: Final = Struct("<Q")


def _permissions(flags: int) -> str:
    """This writes ``vm_flags`` as ``/proc/PID/maps`` does."""
    letters = ((_READ, "r"), (_WRITE, "w"), (_EXECUTE, "x"))
    shown = "".join(letter if flags & bit else "-" for bit, letter in letters)
    return shown + ("s" if flags & _MAY_SHARE else "p")


_PERMISSIONS: Final = {
    flags: _permissions(flags) for flags in (*range(8), *range(_MAY_SHARE, _MAY_SHARE + 8))
}
_SHOWN_FLAGS: Final = _READ | _WRITE | _EXECUTE | _MAY_SHARE


@dataclass(slots=True)
class _Map:
    """This is one process's memory as it is being walked.

    Attributes:
        mm: address of the ``mm_struct``.
        around: what names depend on.
        rows: what was found, in the order of addresses.
    """

    pid: int
    mm: int
    around: Around
    rows: list[MemoryMapping] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)

    def add(self, row: MemoryMapping) -> None:
        """This adds a row in place of those that it overlaps: they were joined meanwhile."""
        while self.rows and self.rows[-1].end > row.start:
            self.rows.pop()
        self.rows.append(row)

    def add_beside(self, row: MemoryMapping) -> None:
        """This adds a row whose bounds are in doubt, unless others lie there."""
        if not self.rows or self.rows[-1].end <= row.start:
            self.rows.append(row)

    def gap(self, address: int, why: str) -> None:
        """This notes what could not be looked at."""
        self.gaps.append(Gap(_STRUCTURE, Va(address), f"of process {self.pid}: {why}"))


class Mappings:
    """This lists the mappings of the processes of one kernel.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        tasks: tells which processes are still there.
        paths: names the files.

    Raises:
        SymbolsError: the profile lacks what the maps need, or describes no possible layout.
    """

    def __init__(
        self, space: AddressSpace, symbols: Symbols, *, tasks: Tasks, paths: Paths
    ) -> None:
        self._tasks = tasks
        self._paths = paths
        self._mm = field_offset(symbols, "task_struct", "mm")
        self._count = field_offset(symbols, "mm_struct", "map_count")
        self._lock = _lock_offset(symbols)
        self._read_pointer = space.unpacker(_POINTER)
        self._read_count = space.unpacker(Struct("<i"))
        self._read_mm = compile_reader(
            space,
            (field_offset(symbols, "mm_struct", "start_brk"), "Q"),
            (field_offset(symbols, "mm_struct", "brk"), "Q"),
            (field_offset(symbols, "mm_struct", "start_stack"), "Q"),
        )
        self._read_vma = compile_reader(space, *_vma_members(symbols))
        self._names = MappingNames(space, symbols)
        self._walk = _walker(self, space, symbols)

    def of(self, process: Process) -> ListWalk[MemoryMapping]:
        """This lists the mappings of one process, by address; kernel threads and zombies have none.

        Raises:
            WalkFailed: the process is gone, or its memory cannot be read at all.
        """
        paths = self._known_paths()
        self._tasks.require_there(process)
        if process.kernel_thread:
            return ListWalk()
        try:
            found = self._steady(process, paths)
        except MemoryFault as fault:
            raise WalkFailed(_STRUCTURE, f"of process {process.pid}: {fault}") from fault
        rows, gaps = ([], []) if found is None else (found.rows, found.gaps)
        return ListWalk(dict(enumerate(rows)), gaps, paths.effort.retries)

    def of_all(self, processes: Iterable[Process]) -> ListWalk[MemoryMapping]:
        """This lists the mappings of processes; one that ends meanwhile has none."""
        result: ListWalk[MemoryMapping] = ListWalk()
        paths = self._known_paths()
        for process in processes:
            if process.kernel_thread:
                continue
            try:
                found = self._steady(process, paths)
            except (MemoryFault, WalkFailed) as error:
                if self._tasks.is_there(process):
                    result.gaps.append(Gap(_STRUCTURE, process.address, str(error)))
                paths.effort.retries += 1
                continue
            if found is not None:
                result.rows.update(enumerate(found.rows, len(result.rows)))
                result.gaps += found.gaps if self._is_incomplete(process, found) else []
            if paths.effort.spent or len(result.gaps) > _MAX_TROUBLE:
                why = "given up: so many mappings there are, or so many lead nowhere"
                result.gaps.append(Gap(_STRUCTURE, process.address, why))
                break
        result.retries = paths.effort.retries
        return result

    def _is_incomplete(self, process: Process, found: _Map) -> bool:
        """This tells whether a map has gaps that count: those of a process that has ended do not."""
        return bool(found.gaps) and self._tasks.is_there(process)

    def _known_paths(self) -> KnownPaths:
        return KnownPaths(self._paths, Effort())

    def _steady(self, process: Process, paths: KnownPaths) -> _Map | None:
        """This walks again where the memory was replaced, or has another number of mappings.

        Where that number changes during each of the walks, the rows are of different moments, as
        those of ``/proc/PID/maps`` are too; where it stays, and nobody is about to change it, what
        was not found is a gap.
        """
        at = process.address + self._mm
        counts: set[tuple[int, int, int]] = set()
        found = None
        for _ in range(_WALKS):
            mm = self._read_pointer(at)[0]
            if not mm:
                return None
            start_brk, brk, stack = self._read_mm(mm)
            found = _Map(process.pid, mm, Around(start_brk, brk, stack, paths.effort, paths))
            before = self._read_count(mm + self._count)[0]
            try:
                self._walk(found)
            except Spent as spent:
                found.gap(mm, str(spent))
                return found
            after = self._read_count(mm + self._count)[0]
            same = self._read_pointer(at)[0] == mm
            if same and before == len(found.rows) == after and not found.gaps:
                return found
            counts.add((before, len(found.rows), after))
            paths.effort.retries += 1
        return self._unsettled(process, found, counts)

    def _unsettled(
        self, process: Process, found: _Map | None, counts: set[tuple[int, int, int]]
    ) -> _Map:
        """This says of the last of several walks what is wrong with it, if anything is."""
        if found is None or self._read_pointer(process.address + self._mm)[0] != found.mm:
            raise WalkFailed(_STRUCTURE, f"process {process.pid} gets another one all the time")
        if len(counts) == 1 and not self.is_being_changed(found.mm):
            ((before, rows, after),) = counts
            if before == after != rows:
                found.gap(found.mm, f"{rows} of {after} mappings were found")
        return found

    def is_being_changed(self, mm: int) -> bool:
        """This tells whether somebody holds ``mmap_lock`` to write.

        Tree, mappings and count are then not of one moment.
        """
        if self._lock is None:
            return False
        return bool(self._read_pointer(mm + self._lock)[0] & _WRITER_LOCKED)

    def mapping(
        self, map_: _Map, vma: int, bounds: Range | None = None
    ) -> tuple[MemoryMapping, Vma]:
        """This makes the row of one mapping, and gives what it was made of.

        Args:
            map_: whose it is.
            vma: address of the ``vm_area_struct``.
            bounds: what the tree says of it.

        Raises:
            Implausible: it is none of this map, or has just been changed.
            MemoryFault: it cannot be read.
            Spent: enough was looked at.
        """
        values = self._read_vma(vma)
        start, end, mm, flags, _, page_offset, file, *_ = values
        if mm != map_.mm or not start < end or (start | end) % PAGE_SIZE:
            raise Implausible(f"no mapping of it: {start:#x} to {end:#x} of {mm:#x}")
        if bounds is not None and (start != bounds.first or end - 1 != bounds.last):
            raise Implausible(
                f"{start:#x} to {end:#x} where the tree has {bounds.first:#x} to"
                f" {bounds.last + 1:#x}"
            )
        map_.around.effort.spend(1)
        its = Vma(*values)
        device, inode, name, deleted = self._names.of(map_.around, vma, its)
        if self._read_vma(vma) != values:
            raise Implausible("it has just been changed")
        return MemoryMapping(
            map_.pid,
            start,
            end,
            _PERMISSIONS[flags & _SHOWN_FLAGS],
            page_offset * PAGE_SIZE if file else 0,
            device,
            inode,
            name,
            deleted,
            Va(vma),
        ), its


def _lock_offset(symbols: Symbols) -> int | None:
    """This is where ``mmap_lock.count`` lies; None where it is another kind of lock (PREEMPT_RT)."""
    lock = symbols.find_field("mm_struct", ("mmap_lock",))
    count = symbols.find_field("rw_semaphore", ("count",))
    return None if lock is None or count is None else lock.offset + count.offset


def _vma_members(symbols: Symbols) -> Iterator[tuple[int, str]]:
    """These are the members of :class:`Vma`."""
    # In the order of the kernel's own struct, which costs nothing to keep.
    names = "vm_start vm_end vm_mm vm_flags vm_ops vm_pgoff vm_file vm_private_data"
    links = "" if _has_tree(symbols) else " vm_next vm_prev"
    for name in (names + links).split():
        yield field_offset(symbols, "vm_area_struct", name), "Q"


def _has_tree(symbols: Symbols) -> bool:
    """This tells whether mappings are kept in a maple tree."""
    return symbols.find_field("mm_struct", ("mm_mt",)) is not None


def _walker(mappings: Mappings, space: AddressSpace, symbols: Symbols) -> Callable[[_Map], None]:
    """This is the walk that this kernel needs: it has a maple tree, or a list and an rb-tree."""
    if _has_tree(symbols):
        return _OfTree(mappings, space, symbols).walk
    return _OfList(mappings, space, symbols).walk


class _OfTree:
    """This walks ``mm_struct.mm_mt``."""

    def __init__(self, mappings: Mappings, space: AddressSpace, symbols: Symbols) -> None:
        self._mapping = mappings.mapping
        self._is_being_changed = mappings.is_being_changed
        self._tree = MapleTree(space, symbols)
        self._offset = field_offset(symbols, "mm_struct", "mm_mt")

    def walk(self, map_: _Map) -> None:
        """This walks from the first address to the last, leaf by leaf."""
        index = 0
        while index <= LAST_INDEX and len(map_.gaps) < _MAX_GAPS:
            leaf, problem = self._tree.leaf(map_.mm + self._offset, index, map_.around.effort)
            if problem:
                map_.gap(map_.mm, f"{problem}, from {index:#x} to {leaf.last:#x}")
            for one in leaf.ranges:
                if one.last >= index:
                    self._add(map_, one)
            index = leaf.last + 1

    def _add(self, map_: _Map, one: Range) -> None:
        """This adds what the tree has at a place, looking there again while it is being changed."""
        why = ""
        for _ in range(_RETRIES):
            try:
                map_.add(self._mapping(map_, one.entry, one)[0])
            except (MemoryFault, Implausible) as error:
                why = str(error)
            else:
                return
            map_.around.effort.retries += 1
            leaf, _ = self._tree.leaf(map_.mm + self._offset, one.first, map_.around.effort)
            now = [there for there in leaf.ranges if there.first <= one.first <= there.last]
            if not now:
                return
            (one,) = now
        self._add_in_doubt(map_, one.entry, why)

    def _add_in_doubt(self, map_: _Map, vma: int, why: str) -> None:
        """This adds a mapping with its own bounds, which the tree has not; a gap, but for a change."""
        try:
            map_.add_beside(self._mapping(map_, vma)[0])
        except (MemoryFault, Implausible):
            map_.gap(vma, why)
        else:
            if not self._is_being_changed(map_.mm):
                map_.gap(vma, why)


class _OfList:
    """This walks ``mm_struct.mmap``, and ``mm_struct.mm_rb`` for what the list does not lead to."""

    def __init__(self, mappings: Mappings, space: AddressSpace, symbols: Symbols) -> None:
        self._mapping = mappings.mapping
        self._read_pointer = space.unpacker(_POINTER)
        self._first = field_offset(symbols, "mm_struct", "mmap")
        self._root = field_offset(symbols, "mm_struct", "mm_rb")
        self._root += field_offset(symbols, "rb_root", "rb_node")
        self._node = field_offset(symbols, "vm_area_struct", "vm_rb")
        self._tree = RbTree(space, symbols)

    def walk(self, map_: _Map) -> None:
        """This walks the list, which rises, and where it breaks off the tree."""
        vma, before, reached = self._read_pointer(map_.mm + self._first)[0], 0, 0
        try:
            while vma:
                row, its = self._mapping(map_, vma)
                _require_behind(its, before, reached)
                map_.rows.append(row)
                vma, before, reached = its.following, vma, its.end
            self._require_last(map_, before)
        except (MemoryFault, Implausible) as error:
            map_.gap(vma, str(error))
            self._rest(map_, reached)

    def _require_last(self, map_: _Map, vma: int) -> None:
        """This raises Implausible where the list ends elsewhere than the tree.

        What is unmapped leaves the list as one piece with an end of its own: who stands on it does
        not come to what is behind.
        """
        root = self._read_pointer(map_.mm + self._root)[0]
        last = self._tree.last(root)
        if last != (vma + self._node if vma else 0):
            raise Implausible(f"the list ends at {vma:#x}, the tree at {last - self._node:#x}")

    def _rest(self, map_: _Map, reached: int) -> None:
        """This adds what the tree has behind an address."""
        root = self._read_pointer(map_.mm + self._root)[0]
        nodes, gaps = self._tree.nodes(root, "mm_struct.mm_rb", map_.around.effort)
        map_.gaps += gaps
        for node in nodes:
            try:
                row, _ = self._mapping(map_, node - self._node)
            except (MemoryFault, Implausible) as error:
                if len(map_.gaps) < _MAX_GAPS:
                    map_.gap(node - self._node, str(error))
                continue
            if row.start >= reached:
                map_.rows.append(row)
                reached = row.end


def _require_behind(its: Vma, before: int, reached: int) -> None:
    """This raises Implausible where a mapping does not follow the one that led to it."""
    if its.before != before:
        raise Implausible(f"it points back to {its.before:#x}, and was reached from {before:#x}")
    if its.start < reached:
        raise Implausible(f"the list returns to {its.start:#x}")
