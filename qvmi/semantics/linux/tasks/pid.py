"""Process ids: the IDR of each pid namespace, the initial one's of which knows every task by number.

References: Linux include/linux/pid.h, include/linux/pid_namespace.h; a ``struct pid`` knows its tasks
since 4.19 by ``pid_links``.
"""

from collections.abc import Callable, Iterable
from struct import Struct
from typing import Final, TypeVar

from qvmi.addr import Va
from qvmi.errors import MemoryFault, WalkFailed
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap, Process, Thread
from qvmi.semantics.linux.structures.idr import Idr
from qvmi.semantics.linux.structures.list import Implausible, ListWalk
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.semantics.linux.tasks.task import Tasks
from qvmi.symbols.layout import Symbols, address, field_offset, struct_size

__all__ = ["PidNamespaces", "PidTable", "pid_numbers"]

Row = TypeVar("Row", Process, Thread)

_STRUCTURE: Final = "init_pid_ns.idr"
_INNER: Final = "pid_namespace.idr"
_PIDTYPE_PID: Final = 0
_PIDTYPE_TGID: Final = 1
_HLIST_NODE_SIZE: Final = 16
_RETRIES: Final = 3
_LEVELS: Final = 4
"""Nodes on the way to a pid: four times six bits cover ``PID_MAX_LIMIT``."""
_IDS_PER_TASK: Final = 3
"""A task may be the last to use three ids: its own, its process group's and its session's."""
_MAX_LEVEL: Final = 32
"""``MAX_PID_NS_LEVEL``."""
_MAX_NAMESPACES: Final = 1 << 16
"""Pid namespaces; a machine with so many containers has no room for what runs in them."""
_MAX_GAPS: Final = 1000
"""A table with so many wrong entries is none."""


def pid_numbers(
    space: AddressSpace, symbols: Symbols, namespace: int, *, structure: str, limit: int
) -> Idr:
    """This is the table of the numbers of a pid namespace.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        namespace: address of the ``struct pid_namespace``.
        structure: its name for gaps and errors.
        limit: more tasks than there can be.

    Raises:
        SymbolsError: the profile lacks what the table needs, or describes no possible layout.
    """
    return Idr(
        space,
        symbols,
        structure=structure,
        at=Va(namespace + field_offset(symbols, "pid_namespace", "idr")),
        limit=_IDS_PER_TASK * limit,
        levels=_LEVELS,
    )


class PidTable:
    """This lists what the IDR of one pid namespace knows.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        tasks: makes the rows.
        namespace: address of the ``struct pid_namespace``; None for the initial one.
        level: how deep it lies below the initial one.

    Raises:
        SymbolsError: the profile lacks what the table needs, or describes no possible layout.
    """

    def __init__(
        self,
        space: AddressSpace,
        symbols: Symbols,
        tasks: Tasks,
        namespace: Va | None = None,
        *,
        level: int = 0,
    ) -> None:
        self._tasks = tasks
        self._level = level
        self._structure = _STRUCTURE if namespace is None else _INNER
        at = address(symbols, "init_pid_ns") if namespace is None else namespace
        self._numbers = pid_numbers(
            space, symbols, at, structure=self._structure, limit=tasks.limit
        )
        number = field_offset(symbols, "pid", "numbers") + field_offset(symbols, "upid", "nr")
        if level:
            number += level * struct_size(symbols, "upid")
        heads = field_offset(symbols, "pid", "tasks")
        self._read_task = compile_reader(space, (number, "I"), (heads + 8 * _PIDTYPE_PID, "Q"))
        self._read_leader = compile_reader(space, (number, "I"), (heads + 8 * _PIDTYPE_TGID, "Q"))
        self._links = field_offset(symbols, "task_struct", "pid_links")

    def processes(self) -> ListWalk[Process]:
        """This lists every thread group of the namespace, by rising pid.

        Raises:
            WalkFailed: not even the root of the table can be read.
        """
        return self._rows(self._process_of)

    def threads(self) -> ListWalk[Thread]:
        """This lists every thread of the namespace, by rising pid.

        Raises:
            WalkFailed: not even the root of the table can be read.
        """
        return self._rows(self._thread_of)

    def _rows(self, row_of: Callable[[int, int], Row | None]) -> ListWalk[Row]:
        result: ListWalk[Row] = ListWalk()
        for number, pid in self._numbers.entries(result):
            self._add(number, pid, result, row_of)
            if len(result.gaps) > _MAX_GAPS:
                why = "given up: so much of it is wrong"
                result.gaps.append(Gap(self._structure, None, why))
                break
        return result

    def _add(
        self,
        number: int,
        pid: int,
        result: ListWalk[Row],
        row_of: Callable[[int, int], Row | None],
    ) -> None:
        """This adds the row of one ``struct pid``, if it is the id of one."""
        why = ""
        for _ in range(_RETRIES):
            try:
                row = row_of(number, pid)
            except (MemoryFault, Implausible) as error:
                why = str(error)
            else:
                if row is not None:
                    result.rows[row.address] = row
                return
            result.retries += 1
            if not self._numbers.has(number, pid):
                return
        result.gaps.append(Gap(self._structure, Va(pid), f"pid {number}: {why}"))

    def _process_of(self, number: int, pid: int) -> Process | None:
        """This is the process of a ``struct pid``.

        Returns:
            None for an id of a session, a process group, or a thread that leads none.
        """
        link = self._link_of(number, pid, self._read_leader(pid))
        if not link:
            return None
        row = self._tasks.process_at(Va(link - self._links - _HLIST_NODE_SIZE * _PIDTYPE_TGID))
        self._require_same(number, row)
        return row

    def _thread_of(self, number: int, pid: int) -> Thread | None:
        """This is the thread of a ``struct pid``; None for an id of a session or a process group."""
        link = self._link_of(number, pid, self._read_task(pid))
        if not link:
            return None
        row = self._tasks.thread_at(Va(link - self._links - _HLIST_NODE_SIZE * _PIDTYPE_PID))
        self._require_same(number, row)
        return row

    @staticmethod
    def _link_of(number: int, pid: int, values: tuple[int, int]) -> int:
        """This is what a ``struct pid`` of the number leads to."""
        its_number, link = values
        if its_number != number:
            raise Implausible(f"the struct pid at {pid:#x} is of {its_number}")
        return link

    def _require_same(self, number: int, row: Process | Thread) -> None:
        """This raises Implausible where a task has another pid; within, it is not that of its row."""
        if not self._level and row.pid != number:
            raise Implausible(f"its task at {row.address:#x} has the pid {row.pid}")


class PidNamespaces:
    """This finds the pid namespaces below the initial one.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        tasks: makes the rows.

    Raises:
        SymbolsError: the profile lacks what this needs, or describes no possible layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols, tasks: Tasks) -> None:
        self._space = space
        self._symbols = symbols
        self._tasks = tasks
        self._thread_pid = field_offset(symbols, "task_struct", "thread_pid")
        self._level = field_offset(symbols, "pid", "level")
        self._namespace = field_offset(symbols, "pid", "numbers")
        self._namespace += field_offset(symbols, "upid", "ns")
        self._id_size = struct_size(symbols, "upid")
        self._read_pointer = space.unpacker(Struct("<Q"))
        self._read_number = space.unpacker(Struct("<I"))

    def processes(self, members: Iterable[Process | Thread]) -> ListWalk[Process]:
        """This lists what the namespaces know that some tasks are in.

        Args:
            members: the tasks; a namespace of which none is here is not known.
        """
        result: ListWalk[Process] = ListWalk()
        for namespace, level in self._namespaces(members, result.gaps).items():
            table = PidTable(self._space, self._symbols, self._tasks, Va(namespace), level=level)
            try:
                found = table.processes()
            except WalkFailed as error:
                result.gaps.append(Gap(_INNER, Va(namespace), str(error)))
                continue
            result.rows.update(found.rows)
            result.gaps.extend(found.gaps)
            result.retries += found.retries
            if len(result.gaps) > _MAX_GAPS:
                break
        return result

    def _namespaces(self, members: Iterable[Process | Thread], gaps: list[Gap]) -> dict[int, int]:
        """These are the addresses of the namespaces, and how deep each lies."""
        found: dict[int, int] = {}
        for member in members:
            try:
                pid = self._read_pointer(member.address + self._thread_pid)[0]
                level = self._read_number(pid + self._level)[0] if pid else 0
                for depth in range(1, level + 1 if level <= _MAX_LEVEL else 1):
                    at = pid + self._namespace + depth * self._id_size
                    found.setdefault(self._read_pointer(at)[0], depth)
            except MemoryFault:
                continue  # it ended, and its ids went with it
            if len(found) > _MAX_NAMESPACES:
                gaps.append(Gap(_INNER, None, f"more than {_MAX_NAMESPACES} namespaces"))
                break
        return found
