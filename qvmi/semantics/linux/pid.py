"""Process ids: the initial pid namespace's IDR, which knows every task by number.

References: Linux include/linux/pid.h, include/linux/pid_namespace.h, include/linux/xarray.h
(``xa_is_node``, ``xa_to_node``, ``XA_RETRY_ENTRY``), lib/idr.c.
"""

from collections.abc import Iterator
from struct import Struct
from typing import Final

from qvmi.addr import Va
from qvmi.errors import MemoryFault, WalkFailed
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap, Process
from qvmi.semantics.linux.list import Implausible, ListWalk
from qvmi.semantics.linux.record import compile_reader
from qvmi.semantics.linux.task import PID_MAX_LIMIT, Tasks
from qvmi.symbols.layout import Symbols, address, field_offset

__all__ = ["PidTable"]

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


class PidTable:
    """This lists the processes that ``init_pid_ns.idr`` knows.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        tasks: makes the rows.

    Raises:
        SymbolNotFound, LayoutNotFound: the profile lacks what the table needs.
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
        self._read_pid = compile_reader(space, {number: "I", leader: "Q"})
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
            raise WalkFailed("init_pid_ns.idr", str(fault)) from fault
        for number, pid in self._entries(root, result):
            self._add(number, pid, result)
        return result

    def _add(self, number: int, pid: int, result: ListWalk[Process]) -> None:
        """This adds the process of one ``struct pid``, if it has one that is a group's leader."""
        why = ""
        for _ in range(_RETRIES):
            try:
                its_number, link = self._read_pid(pid)
                if its_number == number and not link:
                    return  # the id of a session, a process group, or a thread that leads none
                if its_number != number:
                    why = f"struct pid at {pid:#x} holds {its_number}"
                else:
                    task = Va(link - self._link_offset)
                    result.rows[task] = self._tasks.process_at(task)
                    return
            except (MemoryFault, Implausible) as error:
                why = str(error)
            result.retries += 1
            if self._slot_now(number) != pid:
                return  # the id was freed meanwhile
        result.gaps.append(Gap("init_pid_ns.idr", Va(pid), f"pid {number}: {why}"))

    def _slot_now(self, number: int) -> int:
        """This looks one number up anew; 0 where it is gone."""
        try:
            entry = self._read_pointer(self._root)[0]
            while _is_node(entry):
                node = entry - _INTERNAL
                shift = self._read_shift(node + self._shift_offset)[0]
                slot = number >> shift & (_SLOTS - 1)
                entry = self._read_pointer(node + self._slots_offset + 8 * slot)[0]
                if not shift:
                    break
        except MemoryFault:
            return 0
        return int(entry)

    def _entries(self, root: int, result: ListWalk[Process]) -> Iterator[tuple[int, int]]:
        """This iterates (number, struct pid) below a root entry, in order, within pid's bounds."""
        stack = [(root, 0, PID_MAX_LIMIT.bit_length() + _SLOT_BITS)]
        while stack:
            entry, first, above = stack.pop()
            if not _is_node(entry):
                if entry and not entry & _KIND_MASK:
                    yield first, entry
                continue
            try:
                shift = self._read_shift(entry - _INTERNAL + self._shift_offset)[0]
                slots = self._read_slots(entry - _INTERNAL + self._slots_offset)
            except MemoryFault as fault:
                result.gaps.append(Gap("init_pid_ns.idr", Va(entry - _INTERNAL), str(fault)))
                continue
            if shift % _SLOT_BITS or shift >= above:
                why = f"a node of shift {shift} below one of {above}"
                result.gaps.append(Gap("init_pid_ns.idr", Va(entry - _INTERNAL), why))
                continue
            for slot in range(_SLOTS - 1, -1, -1):
                if slots[slot]:
                    stack.append((slots[slot], first + (slot << shift), shift))


def _is_node(entry: int) -> bool:
    """This tells whether an entry of an xarray points to a node. Corresponds to ``xa_is_node``."""
    return entry & _KIND_MASK == _INTERNAL and entry > _LARGEST_SPECIAL
