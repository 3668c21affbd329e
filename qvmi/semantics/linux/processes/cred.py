"""Credentials: who processes are for the kernel, and what they may do.

References: Linux include/linux/cred.h (``struct cred``, ``struct group_info``; committed ones never
change), fs/proc/array.c (``task_state``, ``task_cap``, ``task_seccomp``: what is shown is of
``real_cred``), include/linux/sched.h (``PFA_NO_NEW_PRIVS``), include/uapi/linux/seccomp.h,
kernel/cred.c (``copy_creds``: only threads share theirs), fs/overlayfs/util.c.
"""

from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from struct import Struct
from typing import Final, NamedTuple

from qvmi.addr import Va
from qvmi.errors import MemoryFault
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap, Process
from qvmi.semantics.linux.processes.apparmor import apparmor_of
from qvmi.semantics.linux.processes.capability import capability_set
from qvmi.semantics.linux.structures.effort import Effort
from qvmi.semantics.linux.structures.list import Implausible, ListWalk
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.semantics.linux.tasks.each_process import of_each
from qvmi.semantics.linux.tasks.task import Tasks
from qvmi.semantics.rows.credentials import CapabilitySet, Credentials
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["CredentialTable"]

_STRUCTURE: Final = "task_struct.real_cred"
_MAX_GROUPS: Final = 1 << 16
"""``NGROUPS_MAX``."""
_STEPS_A_GROUP: Final = 4
"""What a group costs of the effort for all: a million of them are a hundred times what is seen."""
_MAX_SHARERS: Final = 100
"""Processes that are told to share credentials; where there are more that is a gap."""
_IDLE: Final = 0
"""The pid of what runs where there is nothing to do."""
_SETS: Final = 256
"""Different sets of capabilities that are remembered: a guest has some dozen."""
_NO_NEW_PRIVS: Final = 1
"""``PFA_NO_NEW_PRIVS`` as a bit of ``task_struct.atomic_flags``."""
_SECCOMP: Final = ("disabled", "strict", "filter", "dead")
_NUMBER: Final = Struct("<I")


class _Task(NamedTuple):
    """These are the members of a ``task_struct`` that credentials hang on."""

    pid: int
    real_cred: int
    cred: int
    flags: int


class _Cred(NamedTuple):
    """These are the members of a ``struct cred``, by their names there."""

    uid: int
    euid: int
    suid: int
    fsuid: int
    gid: int
    egid: int
    sgid: int
    fsgid: int
    securebits: int
    cap_inheritable: int
    cap_permitted: int
    cap_effective: int
    cap_bset: int
    cap_ambient: int
    security: int
    user_ns: int
    group_info: int


_IDS: Final = 9
"""Members of :class:`_Cred` that are of 32 bits; the others are of 64."""


class CredentialTable:
    """This tells the credentials of the processes of one kernel.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        tasks: lists the processes.

    Raises:
        SymbolsError: the profile lacks what credentials need, or describes no possible layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols, *, tasks: Tasks) -> None:
        self._tasks = tasks
        self._memory = _Memory(space, symbols)

    def of(self, process: Process | None) -> ListWalk[Credentials]:
        """This tells the credentials of a process, or of all, and with whom they are shared.

        Raises:
            WalkFailed: the process is gone, or the list of processes cannot be walked at all.
        """
        if process is not None:
            self._tasks.require_there(process)
        every = self._tasks.processes()
        effort = Effort()
        look = _Look(self._memory, every.rows.values(), effort)
        wanted = every.rows.values() if process is None else (process,)
        found = of_each(wanted, look.at, structure=_STRUCTURE, tasks=self._tasks, effort=effort)
        return ListWalk(found.rows, [*every.gaps, *found.gaps], every.retries + found.retries)


class _Memory:
    """This reads what credentials are made of.

    Attributes:
        task: reads the members of :class:`_Task`.
        cred: reads the members of :class:`_Cred`.
        init_cred: those of the idle task, which the kernel was built with; None where it is not told.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols) -> None:
        def task(name: str) -> int:
            return field_offset(symbols, "task_struct", name)

        self._space = space
        self.init_cred = symbols.find("init_cred")
        self._apparmor = apparmor_of(space, symbols)
        self.task = compile_reader(
            space,
            (task("pid"), "I"),
            (task("real_cred"), "Q"),
            (task("cred"), "Q"),
            (task("atomic_flags"), "Q"),
        )
        forms = "I" * _IDS + "Q" * (len(_Cred._fields) - _IDS)
        members = (field_offset(symbols, "cred", name) for name in _Cred._fields)
        self.cred = compile_reader(space, *zip(members, forms, strict=True))
        self._read_number = space.unpacker(_NUMBER)
        self._user_number = field_offset(symbols, "user_namespace", "ns")
        self._user_number += field_offset(symbols, "ns_common", "inum")
        self._group_count = field_offset(symbols, "group_info", "ngroups")
        self._group_ids = field_offset(symbols, "group_info", "gid")
        seccomp = symbols.find_field("task_struct", ("seccomp",))
        self._mode = seccomp and seccomp.offset + field_offset(symbols, "seccomp", "mode")

    def groups(self, group_info: int, effort: Effort) -> tuple[int, ...]:
        """These are the ids of a ``struct group_info``."""
        count = self._read_number(group_info + self._group_count)[0]
        if count > _MAX_GROUPS:
            raise Implausible(f"{count} supplementary groups")
        effort.spend(count * _STEPS_A_GROUP)
        held = self._space.read(Va(group_info + self._group_ids), count * _NUMBER.size)
        return tuple(number for (number,) in _NUMBER.iter_unpack(held))

    def seccomp(self, task: int) -> str:
        """This is how a task's system calls are filtered."""
        if self._mode is None:
            return ""
        mode = self._read_number(task + self._mode)[0]
        return _SECCOMP[mode] if mode < len(_SECCOMP) else str(mode)

    def user_namespace(self, address: int) -> int:
        """This is the number of a user namespace."""
        return int(self._read_number(address + self._user_number)[0])

    def label(self, security: int, effort: Effort) -> str:
        """This is AppArmor's label, empty where the kernel has none."""
        return "" if self._apparmor is None else self._apparmor.label(security, effort)


class _Look:
    """This is one look at the credentials of all.

    Args:
        memory: reads them.
        processes: all that there are.
        effort: what the look may cost.
    """

    def __init__(self, memory: _Memory, processes: Iterable[Process], effort: Effort) -> None:
        self._memory = memory
        self._effort = effort
        self._owners: dict[int, list[Process]] = defaultdict(list)
        for process in processes:
            task = self._task_of(process)
            for cred in {task.real_cred, task.cred} if task else ():
                self._owners[cred].append(process)
        self._crowds: set[int] = set()
        self._groups: dict[int, tuple[int, ...]] = {}

    def at(self, process: Process, gaps: list[Gap]) -> tuple[Credentials, ...]:
        """This makes the row of one process, if its credentials stay the same meanwhile."""
        before = _Task._make(self._memory.task(process.address))
        if before.pid != process.pid:
            raise Implausible(f"its task has the pid {before.pid} now")
        row = self._row(process, before, gaps)
        if self._memory.task(process.address) != before:
            raise Implausible("its credentials change all the time")
        return (row,)

    def _row(self, process: Process, task: _Task, gaps: list[Gap]) -> Credentials:
        its = _Cred._make(self._memory.cred(task.real_cred))
        return Credentials(
            process.pid,
            process.name,
            its.uid,
            its.euid,
            its.suid,
            its.fsuid,
            its.gid,
            its.egid,
            its.sgid,
            its.fsgid,
            self._groups_of(its.group_info),
            _named(its.cap_inheritable),
            _named(its.cap_permitted),
            _named(its.cap_effective),
            _named(its.cap_bset),
            _named(its.cap_ambient),
            its.securebits,
            bool(task.flags & _NO_NEW_PRIVS),
            self._memory.seccomp(process.address),
            self._label(its.security, process, gaps),
            self._memory.user_namespace(its.user_ns),
            Va(task.cred),
            Va(task.real_cred),
            self._sharers(process, task, gaps),
            process.address,
        )

    def _groups_of(self, group_info: int) -> tuple[int, ...]:
        """These are a process's groups, of which most have the very same."""
        known = self._groups.get(group_info)
        if known is None:
            known = self._groups[group_info] = self._memory.groups(group_info, self._effort)
        return known

    def _label(self, security: int, process: Process, gaps: list[Gap]) -> str:
        """This is the label; one that cannot be read leaves the rest of the row true."""
        try:
            return self._memory.label(security, self._effort)
        except (MemoryFault, Implausible) as error:
            why = f"the label of process {process.pid}: {error}"
            gaps.append(Gap("cred.security", process.address, why))
            return ""

    def _sharers(self, process: Process, task: _Task, gaps: list[Gap]) -> tuple[int, ...]:
        """These are the pids of others that have the same credentials now.

        What is nobody's own counts for nothing: for a moment the kernel lets any number of
        processes act by what it has made itself, as overlayfs does (``ovl_override_creds``).
        """
        idle = self._memory.init_cred is not None and task.real_cred == self._memory.init_cred
        found: dict[int, None] = {_IDLE: None} if idle else {}
        for cred in dict.fromkeys((task.real_cred, task.cred)):
            for other in self._owners.get(cred, ()):
                if other.address == process.address:
                    continue
                self._effort.spend(1)
                if len(found) == _MAX_SHARERS:
                    self._add_crowd(cred, gaps)
                    break
                its = self._task_of(other)
                if its and cred in {its.real_cred, its.cred} & {its.real_cred, task.real_cred}:
                    found[other.pid] = None
        return tuple(sorted(found))

    def _add_crowd(self, cred: int, gaps: list[Gap]) -> None:
        if cred not in self._crowds:
            self._crowds.add(cred)
            why = f"more than {_MAX_SHARERS} processes have the same: only so many are told"
            gaps.append(Gap("struct cred", Va(cred), why))

    def _task_of(self, process: Process) -> _Task | None:
        """This is what a process has now; None if it is gone or cannot be read."""
        try:
            task = _Task._make(self._memory.task(process.address))
        except MemoryFault:
            return None
        return task if task.pid == process.pid else None


@lru_cache(_SETS)
def _named(number: int) -> CapabilitySet:
    return capability_set(number)
