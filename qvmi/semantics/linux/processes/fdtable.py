"""Open files: the table of descriptors of each process, and what each descriptor refers to.

References: Linux include/linux/fdtable.h, include/linux/fs.h (``struct file``, ``FMODE_READ``),
fs/proc/fd.c; since 6.7 a ``struct file`` may be used again at once (0ede61d8589c), so that who has
read one looks whether the descriptor still leads to it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from struct import Struct
from typing import Final

from qvmi.addr import Va
from qvmi.errors import MemoryFault
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap, OpenFile, Process
from qvmi.semantics.linux.fs.d_path import Paths
from qvmi.semantics.linux.fs.inode import Inodes
from qvmi.semantics.linux.fs.path_memo import KnownPaths
from qvmi.semantics.linux.structures.effort import Effort, Spent
from qvmi.semantics.linux.structures.list import Implausible, ListWalk
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.semantics.linux.tasks.task import Tasks
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["OpenFiles"]

_MAX_DESCRIPTORS: Final = 1 << 20
"""What ``fs.nr_open`` allows a process unless an administrator raises it."""
_SLOTS_A_STEP: Final = 4
"""Empty slots that cost as much as one structure elsewhere."""
_MAX_TROUBLE: Final = 10_000
"""Gaps of all processes together; a lying guest could have as many as slots."""
_RETRIES: Final = 3
_SLOT: Final = Struct("<Q")
_READ_WRITE: Final = 3
_ACCESS: Final = ("", "r", "w", "rw")
"""By the bits FMODE_READ and FMODE_WRITE."""
_STRUCTURE: Final = "task_struct.files"


@dataclass(frozen=True, slots=True)
class _Question:
    """This is what one question wants to know.

    Args:
        effort: what it may cost.
        paths: names the files it meets.
        operations: address of the ``file_operations`` that files must have; None for any.
    """

    effort: Effort
    paths: KnownPaths
    operations: int | None


class OpenFiles:
    """This lists what processes have open.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        tasks: tells which processes are still there.
        paths: names the files.

    Raises:
        SymbolsError: the profile lacks what the tables need, or describes no possible layout.
    """

    def __init__(
        self, space: AddressSpace, symbols: Symbols, *, tasks: Tasks, paths: Paths
    ) -> None:
        self._space = space
        self._tasks = tasks
        self._paths = paths
        self._inodes = Inodes(space, symbols)
        self._files = field_offset(symbols, "task_struct", "files")
        self._table = field_offset(symbols, "files_struct", "fdt")
        self._read_pointer = space.unpacker(_SLOT)
        self._read_table = compile_reader(
            space,
            (field_offset(symbols, "fdtable", "max_fds"), "I"),
            (field_offset(symbols, "fdtable", "fd"), "Q"),
        )
        path = field_offset(symbols, "file", "f_path")
        self._read_file = compile_reader(
            space,
            (path + field_offset(symbols, "path", "mnt"), "Q"),
            (path + field_offset(symbols, "path", "dentry"), "Q"),
            (field_offset(symbols, "file", "f_inode"), "Q"),
            (field_offset(symbols, "file", "f_mode"), "I"),
            (field_offset(symbols, "file", "f_pos"), "q"),
            (field_offset(symbols, "file", "f_op"), "Q"),
        )

    def of(
        self, processes: Iterable[Process], *, operations: int | None = None
    ) -> ListWalk[OpenFile]:
        """This lists the open files of processes; one that ends meanwhile has none.

        Args:
            processes: whose files.
            operations: address of a ``file_operations``, to list only files of that kind: the others
                are not named, which is what takes longest.
        """
        result: ListWalk[OpenFile] = ListWalk()
        effort = Effort()
        question = _Question(effort, KnownPaths(self._paths, effort), operations)
        for process in processes:
            try:
                rows = self._of(process, result.gaps, question)
            except (MemoryFault, Implausible) as error:
                if self._tasks.is_there(process):
                    result.gaps.append(Gap(_STRUCTURE, process.address, str(error)))
                effort.retries += 1
                continue
            except Spent as spent:
                result.gaps.append(Gap(_STRUCTURE, process.address, str(spent)))
                break
            result.rows.update(enumerate(rows, len(result.rows)))
            if len(result.gaps) > _MAX_TROUBLE:
                why = "given up: so many descriptors lead nowhere"
                result.gaps.append(Gap(_STRUCTURE, process.address, why))
                break
        result.retries = effort.retries
        return result

    def leads_to(self, process: Process, number: int) -> int:
        """This is the address of the file that a descriptor leads to now, 0 where it is closed.

        Raises:
            MemoryFault: it cannot be told; perhaps the process is gone.
        """
        files = self._read_pointer(process.address + self._files)[0]
        if not files:
            return 0
        size, slots = self._read_table(self._read_pointer(files + self._table)[0])
        return int(self._read_pointer(slots + number * _SLOT.size)[0]) if number < size else 0

    def _of(self, process: Process, gaps: list[Gap], question: _Question) -> list[OpenFile]:
        """This lists one process's files, again if it got another table meanwhile."""
        at = process.address + self._files
        for _ in range(_RETRIES):
            files = self._read_pointer(at)[0]
            if not files:
                return []
            found: list[Gap] = []
            rows = self._table_of(process, files, found, question)
            if self._read_pointer(at)[0] == files and not (
                found and not self._tasks.is_there(process)
            ):
                gaps += found
                return rows
            question.effort.retries += 1
        raise Implausible("its files_struct is replaced all the time")

    def _table_of(
        self, process: Process, files: int, gaps: list[Gap], question: _Question
    ) -> list[OpenFile]:
        size, slots = self._read_table(self._read_pointer(files + self._table)[0])
        if size > _MAX_DESCRIPTORS:
            raise Implausible(f"a table of {size} descriptors")
        question.effort.spend(size // _SLOTS_A_STEP)
        rows: list[OpenFile] = []
        held = self._space.read(Va(slots), size * _SLOT.size).rstrip(b"\0")
        held += bytes(-len(held) % _SLOT.size)
        for number, (file,) in enumerate(_SLOT.iter_unpack(held)):
            if not file:
                continue
            slot = slots + number * _SLOT.size
            try:
                row = self._row((process.pid, number), slot, file, question)
            except (MemoryFault, Implausible) as error:
                why = f"descriptor {number} of process {process.pid}: {error}"
                gaps.append(Gap("fdtable.fd", Va(file), why))
                if len(gaps) > _MAX_TROUBLE:
                    break
            else:
                rows += row
        return rows

    def _row(
        self, whose: tuple[int, int], slot: int, file: int, question: _Question
    ) -> tuple[OpenFile, ...]:
        """This makes the row of one descriptor, of what it refers to when the row is made.

        Returns:
            Nothing where it was closed meanwhile, or is of another kind than wanted.
        """
        error: Exception = Implausible("it refers to another file each time")
        for _ in range(_RETRIES):
            rows: tuple[OpenFile, ...] | None = None
            try:
                rows = self._file(whose, file, question)
            except (MemoryFault, Implausible) as trouble:
                error = trouble
            now = self._read_pointer(slot)[0]
            if now == file and rows is not None:
                return rows
            if not now:
                return ()
            file = now
            question.effort.retries += 1
        raise error

    def _file(self, whose: tuple[int, int], file: int, question: _Question) -> tuple[OpenFile, ...]:
        mount, dentry, inode, mode, position, operations = self._read_file(file)
        if question.operations is not None and operations != question.operations:
            return ()
        path, deleted = question.paths.of(mount, dentry)
        kind, number, device = self._inodes.at(inode)
        access = _ACCESS[mode & _READ_WRITE]
        return (OpenFile(*whose, path, kind, access, position, device, number, deleted, Va(file)),)
