"""Process ids: the initial pid namespace's IDR, which knows every task by number.

References: Linux include/linux/pid.h, include/linux/pid_namespace.h; a ``struct pid`` knows its tasks
since 4.19 by ``pid_links``.
"""

from typing import Final

from qvmi.addr import Va
from qvmi.errors import MemoryFault
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap, Process
from qvmi.semantics.linux.idr import Idr
from qvmi.semantics.linux.list import Implausible, ListWalk
from qvmi.semantics.linux.record import compile_reader
from qvmi.semantics.linux.task import Tasks
from qvmi.symbols.layout import Symbols, address, field_offset

__all__ = ["PidTable"]

_STRUCTURE: Final = "init_pid_ns.idr"
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
        self._numbers = Idr(
            space,
            symbols,
            structure=_STRUCTURE,
            at=Va(address(symbols, "init_pid_ns") + field_offset(symbols, "pid_namespace", "idr")),
            limit=_IDS_PER_TASK * tasks.limit,
            levels=_LEVELS,
        )
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
        for number, pid in self._numbers.entries(result):
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
            if not self._numbers.has(number, pid):
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
