"""Process ids: the initial pid namespace's IDR, which knows every task by number.

References: Linux include/linux/pid.h, include/linux/pid_namespace.h, include/linux/xarray.h
(``xa_is_node``, ``xa_to_node``), lib/idr.c; a ``struct pid`` knows its tasks since 4.19 by
``pid_links``.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from struct import Struct
from typing import Final

from qvmi.addr import Va
from qvmi.errors import MemoryFault, WalkFailed
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap, Process
from qvmi.semantics.linux.list import Implausible, ListWalk
from qvmi.semantics.linux.record import compile_reader
from qvmi.semantics.linux.task import Tasks
from qvmi.symbols.layout import Symbols, address, field_offset

__all__ = ["PidTable"]

_STRUCTURE: Final = "init_pid_ns.idr"
_SLOTS: Final = 64
"""``XA_CHUNK_SIZE``: entries of one node."""
_SLOT_BITS: Final = 6
_POINTER: Final = Struct("<Q")
_KIND_MASK: Final = 3
_INTERNAL: Final = 2
_LARGEST_SPECIAL: Final = 4096
"""Internal entries up to here are marks, such as XA_RETRY_ENTRY, not nodes."""
_PIDTYPE_TGID: Final = 1
_HLIST_NODE_SIZE: Final = 16
_RETRIES: Final = 3
_LEVELS: Final = 4
"""Nodes on the way to a pid: four times six bits cover ``PID_MAX_LIMIT``."""
_IDS_PER_TASK: Final = 3
"""A task may be the last to use three ids: its own, its process group's and its session's."""
_MAX_GAPS: Final = 1000
"""A table with so many wrong entries is none."""


class PidTable:
    """This lists the processes that ``init_pid_ns.idr`` knows.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        tasks: makes the rows.

    Raises:
        SymbolsError: the profile lacks what the table needs, or describes no possible layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols, tasks: Tasks) -> None:
        self._tasks = tasks
        self._root = Va(
            address(symbols, "init_pid_ns")
            + field_offset(symbols, "pid_namespace", "idr")
            + field_offset(symbols, "idr", "idr_rt")
            + field_offset(symbols, "xarray", "xa_head")
        )
        self._read_pointer = space.unpacker(_POINTER)
        self._read_shift = space.unpacker(Struct("<B"))
        self._read_slots = space.unpacker(Struct(f"<{_SLOTS}Q"))
        self._shift_offset = field_offset(symbols, "xa_node", "shift")
        self._slots_offset = field_offset(symbols, "xa_node", "slots")
        number = field_offset(symbols, "pid", "numbers") + field_offset(symbols, "upid", "nr")
        leader = field_offset(symbols, "pid", "tasks") + 8 * _PIDTYPE_TGID
        self._read_pid = compile_reader(space, (number, "I"), (leader, "Q"))
        self._link_offset = (
            field_offset(symbols, "task_struct", "pid_links") + _HLIST_NODE_SIZE * _PIDTYPE_TGID
        )

    def processes(self) -> ListWalk[Process]:
        """This lists every thread group of the initial pid namespace, by rising pid.

        Raises:
            WalkFailed: not even the root of the table can be read.
        """
        result: ListWalk[Process] = ListWalk()
        try:
            root = self._read_pointer(self._root)[0]
        except MemoryFault as fault:
            raise WalkFailed(_STRUCTURE, str(fault)) from fault
        for number, pid in self._entries(root, result):
            self._add(number, pid, result)
            if len(result.gaps) > _MAX_GAPS:
                result.gaps.append(Gap(_STRUCTURE, None, "given up: so much of it is wrong"))
                break
        return result

    def _add(self, number: int, pid: int, result: ListWalk[Process]) -> None:
        """This adds the process of one ``struct pid``, if it has one that is a group's leader."""
        why = ""
        for _ in range(_RETRIES):
            try:
                row = self._process_of(number, pid)
            except (MemoryFault, Implausible) as error:
                why = str(error)
            else:
                if row is not None:
                    result.rows[row.address] = row
                return
            result.retries += 1
            if self._was_freed(number, pid):
                return
        result.gaps.append(Gap(_STRUCTURE, Va(pid), f"pid {number}: {why}"))

    def _process_of(self, number: int, pid: int) -> Process | None:
        """This is the process of a ``struct pid``.

        Returns:
            None for an id of a session, a process group, or a thread that leads none.
        """
        its_number, link = self._read_pid(pid)
        if its_number != number:
            raise Implausible(f"the struct pid at {pid:#x} is of {its_number}")
        if not link:
            return None
        row = self._tasks.process_at(Va(link - self._link_offset))
        if row.pid != number:
            raise Implausible(f"its task at {row.address:#x} has the pid {row.pid}")
        return row

    def _was_freed(self, number: int, pid: int) -> bool:
        """This looks one number up anew; where that cannot be done it is not known to be freed."""
        try:
            entry = self._read_pointer(self._root)[0]
            for _ in range(_LEVELS):
                if not _is_node(entry):
                    break
                node = entry - _INTERNAL
                shift = self._read_shift(node + self._shift_offset)[0]
                slot = number >> shift & (_SLOTS - 1)
                entry = self._read_pointer(node + self._slots_offset + 8 * slot)[0]
        except MemoryFault:
            return False
        return bool(entry != pid)

    def _entries(self, root: int, result: ListWalk[Process]) -> Iterator[tuple[int, int]]:
        """This iterates (number, struct pid), in order; what it cannot follow becomes a gap."""
        left = _IDS_PER_TASK * self._tasks.limit
        stack = [_Slot(self._root, root, 0, (_LEVELS + 1) * _SLOT_BITS)]
        while stack:
            slot = stack.pop()
            left -= 1
            if not left:
                why = f"more than {_IDS_PER_TASK} entries for each possible task"
                result.gaps.append(Gap(_STRUCTURE, Va(slot.address), why))
                return
            if not slot.entry & _KIND_MASK:
                if slot.entry:
                    yield slot.first, slot.entry
                continue
            try:
                below, torn = self._below(slot)
                stack.extend(below)
                result.retries += torn
            except (MemoryFault, Implausible) as error:
                result.gaps.append(Gap(_STRUCTURE, Va(slot.address), str(error)))

    def _below(self, slot: "_Slot") -> tuple[Iterable["_Slot"], bool]:
        """This gives the slots in use of the node that a slot holds, the last one first.

        If the slot holds it no longer, the node may have been freed while it was read: then it is
        the slot itself, as it is now, and true.
        """
        if not _is_node(slot.entry):
            raise Implausible(f"an entry of no known kind: {slot.entry:#x}")
        node = slot.entry - _INTERNAL
        shift = self._read_shift(node + self._shift_offset)[0]
        at = node + self._slots_offset
        entries = self._read_slots(at)
        now = self._read_pointer(slot.address)[0]
        if now != slot.entry:
            return (replace(slot, entry=now),), True
        if shift % _SLOT_BITS or shift >= slot.above:
            raise Implausible(f"a node of shift {shift} below one of {slot.above}")
        used = (place for place in range(_SLOTS - 1, -1, -1) if entries[place])
        below = (
            _Slot(at + 8 * place, entries[place], slot.first + (place << shift), shift)
            for place in used
        )
        return below, False


@dataclass(frozen=True, slots=True)
class _Slot:
    """This is a place in the table that holds something.

    Args:
        address: of the slot itself.
        entry: what it held.
        first: the lowest number that it stands for.
        above: the shift of the node that it is in.
    """

    address: int
    entry: int
    first: int
    above: int


def _is_node(entry: int) -> bool:
    """This tells whether an entry of an xarray points to a node. Corresponds to ``xa_is_node``."""
    return entry & _KIND_MASK == _INTERNAL and entry > _LARGEST_SPECIAL
