"""What the guest's own kernel says of itself: the oracle that every look from outside is compared with.

References: proc(5). Text is the guest's bytes, one character a byte (latin-1).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tests.guests.lab.control import Row

__all__ = ["Kallsyms", "Module", "Storm", "Task", "Truth"]

PF_WQ_WORKER = 0x20
"""include/linux/sched.h: a kernel worker, whose name /proc decorates with what it works on."""

COMM_BYTES = 15
"""What ``task_struct.comm`` holds; /proc shows the longer names of kernel threads whole."""

WORKER_NAME = re.compile(rb"kworker/[u]?\d+:\d+[A-Z]?")


@dataclass(frozen=True, slots=True, order=True)
class Task:
    """This is one thread, as /proc/TGID/task/PID shows it.

    Attributes:
        pid: the thread's own number; `tgid` its process's; `ppid` its parent process's.
        uid: the real user, `euid` the effective one; `gid`, `egid` likewise.
        state: the letter of /proc/PID/stat.
        name: the bytes of ``task_struct.comm``; `shown_name` is what /proc makes of it for kernel threads.
        start_ticks: field 22 of /proc/PID/stat, in ticks since boot.
    """

    pid: int
    tgid: int
    ppid: int
    uid: int
    euid: int
    gid: int
    egid: int
    state: str
    name: bytes
    shown_name: bytes
    start_ticks: int
    flags: int
    kernel_thread: bool
    command_line: bytes = b""
    executable: bytes = b""
    namespaces: tuple[bytes, ...] = ()

    @property
    def leads(self) -> bool:
        """Tell whether this thread is its process's first."""
        return self.pid == self.tgid

    @property
    def identity(self) -> tuple[int, int, int]:
        """This stays the same as long as the task lives, and no other task has it."""
        return self.pid, self.tgid, self.start_ticks


@dataclass(frozen=True, slots=True)
class Module:
    """This is one line of /proc/modules."""

    name: str
    size: int
    state: str
    address: int


@dataclass(frozen=True, slots=True)
class Kallsyms:
    """This sums up /proc/kallsyms.

    Attributes:
        count: the kernel's own symbols; `sha256` is of exactly their lines.
        module_symbols: how many each module has.
        addresses: of a few symbols.
    """

    count: int
    sha256: str
    module_symbols: dict[str, int]
    addresses: dict[str, int]

    @classmethod
    def of_rows(cls, rows: Iterable[Row]) -> "Kallsyms":
        """This takes the answer to ``kallsyms`` apart."""
        by_kind: dict[str, list[Row]] = {}
        for row in rows:
            by_kind.setdefault(row["kind"], []).append(row)
        (total,) = by_kind["kallsyms"]
        return cls(
            count=total["count"],
            sha256=total["sha256"],
            module_symbols={r["module"]: r["count"] for r in by_kind.get("module_symbols", ())},
            addresses={r["name"]: int(r["address"], 16) for r in by_kind["symbol"]},
        )


@dataclass(frozen=True, slots=True)
class Truth:
    """This is one complete answer of the guest about itself.

    Attributes:
        reporter: the pid of the process that took it, the only one that ran meanwhile.
        clock_ticks: ticks a second, the unit of `Task.start_ticks`.
        version: /proc/version; `release` what ``uname -r`` says; `command_line` /proc/cmdline.
        uptime: seconds since boot.
        tasks: every thread, by pid.
        lines: the raw lines of /proc/modules, /proc/mounts, /proc/net/tcp and others, by path.
    """

    reporter: int
    clock_ticks: int
    cpus: int
    version: str
    release: str
    command_line: str
    boot_id: str
    uptime: float
    tasks: tuple[Task, ...]
    lines: dict[str, tuple[str, ...]]

    @classmethod
    def of_rows(cls, rows: Iterable[Row]) -> "Truth":
        """This takes the answer to ``truth`` apart."""
        guest: Row = {}
        tasks: list[Task] = []
        lines: dict[str, list[str]] = {}
        for row in rows:
            if row["kind"] == "guest":
                guest = row
            elif row["kind"] == "task":
                tasks.append(_task(row))
            elif row["kind"] == "line":
                lines.setdefault(row["file"], []).append(row["text"])
        return cls(
            reporter=guest["reporter"],
            clock_ticks=guest["clock_ticks"],
            cpus=guest["cpus"],
            version=guest["version"],
            release=guest["release"],
            command_line=guest["cmdline"],
            boot_id=guest["boot_id"],
            uptime=float(guest["uptime"].split()[0]),
            tasks=tuple(sorted(tasks)),
            lines={path: tuple(found) for path, found in lines.items()},
        )

    @property
    def processes(self) -> tuple[Task, ...]:
        """These are the first threads of all processes, kernel threads among them."""
        return tuple(task for task in self.tasks if task.leads)

    @property
    def modules(self) -> tuple[Module, ...]:
        """These are the lines of /proc/modules, newest module first, as the kernel lists them."""
        return tuple(_module(line) for line in self.lines.get("/proc/modules", ()))

    def named(self, name: bytes | str) -> Task:
        """This is the one process of that name."""
        wanted = name.encode("latin-1") if isinstance(name, str) else name
        (found,) = (task for task in self.processes if task.name == wanted)
        return found

    def children(self, pid: int) -> tuple[Task, ...]:
        """These are the processes whose parent is `pid`."""
        return tuple(task for task in self.processes if task.ppid == pid)

    def unchanged_until(self, later: "Truth") -> dict[tuple[int, int, int], tuple[Task, Task]]:
        """These are the tasks of both answers, by identity: they existed all the time between them."""
        after = {task.identity: task for task in later.tasks}
        return {t.identity: (t, after[t.identity]) for t in self.tasks if t.identity in after}


@dataclass(frozen=True, slots=True)
class Storm:
    """This accounts for every task of a fork storm.

    Attributes:
        parent: the process that forked; a child bears its name until it gives itself another.
        count: how often it forked.
        pids: by serial number; a child calls itself ``storm-SERIAL``.
        seconds: the thread or grandchild that a child started, by serial number; absent for none.
    """

    parent: int
    count: int
    pids: tuple[int, ...]
    seconds: dict[int, int]

    @classmethod
    def of_rows(cls, rows: Iterable[Row]) -> "Storm":
        """This takes the answer to ``storm stop`` apart."""
        parent, count = 0, 0
        pids: list[int] = []
        seconds: list[int] = []
        for row in rows:
            if row["kind"] == "storm_total":
                parent, count = row["parent"], row["count"]
            elif row["kind"] == "storm":
                pids += row["pids"]
                seconds += row["seconds"]
        started = {serial: pid for serial, pid in enumerate(seconds) if pid}
        return cls(parent, count, tuple(pids), started)

    def names(self) -> dict[int, frozenset[bytes]]:
        """These are the names each pid of the storm may have been seen with."""
        names: dict[int, set[bytes]] = {}
        for serial, pid in enumerate(self.pids):
            own = f"storm-{serial}".encode()
            names.setdefault(pid, set()).update((b"storm-parent", own, b"true"))
            if serial in self.seconds:
                names.setdefault(self.seconds[serial], set()).add(own)
        return {pid: frozenset(found) for pid, found in names.items()}


def _task(row: Row) -> Task:
    shown = row["comm"].encode("latin-1")
    decorated = WORKER_NAME.match(shown) if row["flags"] & PF_WQ_WORKER else None
    return Task(
        pid=row["pid"],
        tgid=row["tgid"],
        ppid=row["ppid"],
        uid=row["uids"][0],
        euid=row["uids"][1],
        gid=row["gids"][0],
        egid=row["gids"][1],
        state=row["state"],
        name=(decorated[0] if decorated else shown)[:COMM_BYTES],
        shown_name=shown,
        start_ticks=row["start_ticks"],
        flags=row["flags"],
        kernel_thread=row["kernel_thread"],
        command_line=row.get("cmdline", "").encode("latin-1"),
        executable=row.get("exe", "").encode("latin-1"),
        namespaces=tuple(value.encode() for key, value in row.items() if key.startswith("ns_")),
    )


def _module(line: str) -> Module:
    name, size, _references, _users, state, address = line.split()[:6]
    return Module(name, int(size), state, int(address, 16))
