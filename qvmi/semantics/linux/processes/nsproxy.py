"""Namespaces of processes: which world each of them sees.

References: Linux include/linux/nsproxy.h, include/linux/ns_common.h, include/linux/pid.h (``struct
upid``; ``ns_of_pid``), kernel/nsproxy.c, fs/proc/namespaces.c, include/linux/utsname.h. The user
namespace is that of the credentials, the pid namespace that of the ``struct pid``; a zombie has
these two alone. Time namespaces came with 5.6 (769071ac9f20).
"""

from collections.abc import Iterable
from struct import Struct
from typing import Final

from qvmi.errors import LayoutNotFound
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap, Process
from qvmi.semantics.linux.fs.d_path import text_of
from qvmi.semantics.linux.structures.effort import Effort
from qvmi.semantics.linux.structures.list import Implausible, ListWalk
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.semantics.linux.tasks.each_process import of_each
from qvmi.semantics.linux.tasks.task import Tasks
from qvmi.semantics.rows.containers import Namespaces
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["NamespaceTable"]

_STRUCTURE: Final = "task_struct.nsproxy"
_KINDS: Final = {
    "mnt_ns": "mnt_namespace",
    "net_ns": "net",
    "uts_ns": "uts_namespace",
    "ipc_ns": "ipc_namespace",
    "cgroup_ns": "cgroup_namespace",
    "time_ns": "time_namespace",
}
"""Members of ``struct nsproxy``, and what they point to; a kernel need not have the last two."""
_MAX_LEVEL: Final = 32
"""``MAX_PID_NS_LEVEL``."""
_HOSTNAME_SIZE: Final = 65
"""``__NEW_UTS_LEN`` and the NUL."""
_POINTER: Final = Struct("<Q")
_NUMBER: Final = Struct("<I")
_HOSTNAME: Final = Struct(f"<{_HOSTNAME_SIZE}s")


class NamespaceTable:
    """This tells the namespaces of the processes of one kernel.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        tasks: tells which processes are still there.

    Raises:
        SymbolsError: the profile lacks what namespaces need, or describes no possible layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols, *, tasks: Tasks) -> None:
        def task(name: str) -> int:
            return field_offset(symbols, "task_struct", name)

        self._tasks = tasks
        self._read_task = compile_reader(
            space,
            (task("pid"), "I"),
            (task("nsproxy"), "Q"),
            (task("real_cred"), "Q"),
            (task("thread_pid"), "Q"),
        )
        self._read_pointer = space.unpacker(_POINTER)
        self._read_number = space.unpacker(_NUMBER)
        self._read_hostname = space.unpacker(_HOSTNAME)
        self._members = _members(symbols)
        self._user = field_offset(symbols, "cred", "user_ns")
        self._user_number = _number(symbols, "user_namespace")
        self._pid_number = _number(symbols, "pid_namespace")
        self._hostname = field_offset(symbols, "uts_namespace", "name")
        self._hostname += field_offset(symbols, "new_utsname", "nodename")
        self._level = field_offset(symbols, "pid", "level")
        self._ids = field_offset(symbols, "pid", "numbers")
        self._id_size = _size(symbols, "upid")
        self._read_id = compile_reader(
            space,
            (field_offset(symbols, "upid", "nr"), "I"),
            (field_offset(symbols, "upid", "ns"), "Q"),
        )

    def of(self, processes: Iterable[Process]) -> ListWalk[Namespaces]:
        """This tells the namespaces of processes; one that ends meanwhile is left out."""
        return of_each(
            processes, self._at, structure=_STRUCTURE, tasks=self._tasks, effort=Effort()
        )

    def _at(self, process: Process, _: list[Gap]) -> tuple[Namespaces, ...]:
        """This makes the row of one process, if it stays in its namespaces meanwhile."""
        before = self._read_task(process.address)
        pid, nsproxy, cred, thread_pid = before
        if pid != process.pid:
            raise Implausible(f"its task has the pid {pid} now")
        pid_ns, inner_pid = self._inner(thread_pid)
        user = self._read_pointer(cred + self._user)[0]
        numbers, hostname = self._of_proxy(nsproxy)
        row = Namespaces(
            process.pid,
            process.name,
            inner_pid,
            numbers.get("mnt_ns"),
            pid_ns,
            numbers.get("net_ns"),
            numbers.get("uts_ns"),
            numbers.get("ipc_ns"),
            self._read_number(user + self._user_number)[0],
            numbers.get("cgroup_ns"),
            numbers.get("time_ns"),
            hostname,
            process.address,
        )
        if self._read_task(process.address) != before:
            raise Implausible("its namespaces change all the time")
        return (row,)

    def _inner(self, thread_pid: int) -> tuple[int, int]:
        """This is the pid namespace that a ``struct pid`` was made in, and its number there."""
        level = self._read_number(thread_pid + self._level)[0]
        if level > _MAX_LEVEL:
            raise Implausible(f"a pid namespace of level {level}")
        number, namespace = self._read_id(thread_pid + self._ids + level * self._id_size)
        return self._read_number(namespace + self._pid_number)[0], number

    def _of_proxy(self, nsproxy: int) -> tuple[dict[str, int], str | None]:
        """These are the numbers of the namespaces that a ``struct nsproxy`` holds, and a hostname."""
        if not nsproxy:
            return {}, None
        found: dict[str, int] = {}
        hostname = None
        for name, (member, number) in self._members.items():
            namespace = self._read_pointer(nsproxy + member)[0]
            if namespace:
                found[name] = self._read_number(namespace + number)[0]
            if namespace and name == "uts_ns":
                hostname = self._hostname_at(namespace + self._hostname)
        return found, hostname

    def _hostname_at(self, address: int) -> str:
        """This reads a hostname, which is written byte by byte when it is changed."""
        held = self._read_hostname(address)[0]
        if self._read_hostname(address)[0] != held:
            raise Implausible("its hostname changes all the time")
        name, end, _ = held.partition(b"\0")
        if not end:
            raise Implausible("a hostname without an end")
        return text_of(name)


def _members(symbols: Symbols) -> dict[str, tuple[int, int]]:
    """These are the members of ``struct nsproxy`` that a kernel has, and where a number is in each."""
    found: dict[str, tuple[int, int]] = {}
    for name, type_name in _KINDS.items():
        member = symbols.find_field("nsproxy", (name,))
        if member is not None:
            found[name] = (member.offset, _number(symbols, type_name))
    if not found:
        raise LayoutNotFound("nsproxy")
    return found


def _number(symbols: Symbols, type_name: str) -> int:
    """This is where a namespace has its number."""
    number = field_offset(symbols, type_name, "ns")
    return number + field_offset(symbols, "ns_common", "inum")


def _size(symbols: Symbols, type_name: str) -> int:
    size = symbols.size_of(type_name)
    if not size:
        raise LayoutNotFound(type_name)
    return size
