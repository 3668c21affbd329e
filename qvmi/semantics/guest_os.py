"""The selected interface: what any guest operating system can be asked, and the rows it answers with."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import msgspec

from qvmi.addr import Va
from qvmi.view import Provenance

__all__ = [
    "CommandLine",
    "Evidence",
    "Gap",
    "GuestFacts",
    "GuestOS",
    "Listing",
    "LogRecord",
    "MemoryMapping",
    "Module",
    "Mount",
    "OpenFile",
    "Process",
    "Socket",
    "Thread",
    "Variable",
]

Row_co = TypeVar("Row_co", covariant=True)


class Process(msgspec.Struct, frozen=True, gc=False):
    r"""This is one process: a thread group of the guest.

    Args:
        pid: its id in the initial pid namespace. Corresponds to ``task_struct.pid`` of the leader.
        tgid: its thread group's id; equal to ``pid``.
        ppid: thread group id of ``task_struct.real_parent``; 0 for the first ones.
        uid: real user id, in the initial user namespace.
        gid: real group id, in the initial user namespace.
        state: the letter that ``ps`` shows: R, S, D, T, t, X, Z, P or I.
        name: ``task_struct.comm``, bytes that are no UTF-8 written as ``\xNN``; at most 15 bytes
            in the guest. It is the guest's word: escape it for whatever it is printed on. Kernels
            newer than 6.12 write it unlocked: for a moment it may be half the old one, as in /proc.
        address: of its leader's ``task_struct``.
        kernel_thread: whether ``PF_KTHREAD`` is set.
        start_time_s: seconds after the guest's boot, suspended time included.
    """

    pid: int
    tgid: int
    ppid: int
    uid: int
    gid: int
    state: str
    name: str
    address: Va
    kernel_thread: bool
    start_time_s: float


class Thread(msgspec.Struct, frozen=True, gc=False):
    """This is one thread; the fields are those of :class:`Process`.

    Args:
        pid: the thread's own id. Corresponds to ``task_struct.pid``.
        tgid: the id of the process it belongs to.
        state: the letter that ``ps`` shows.
        name: the thread's own ``task_struct.comm``.
        address: of its ``task_struct``.
        start_time_s: seconds after the guest's boot.
    """

    pid: int
    tgid: int
    state: str
    name: str
    address: Va
    start_time_s: float


class Module(msgspec.Struct, frozen=True, gc=False):
    """This is one loaded kernel module.

    Args:
        name: ``module.name``.
        address: where its text is loaded, as ``/proc/modules`` shows.
        size: bytes of all its parts, as ``/proc/modules`` shows.
        state: ``live``, ``coming`` or ``going``.
        struct_address: of its ``struct module``.
    """

    name: str
    address: Va
    size: int
    state: str
    struct_address: Va


class Mount(msgspec.Struct, frozen=True, gc=False):
    """This is one mounted file system, as one mount namespace sees it.

    Args:
        id: as ``/proc/PID/mountinfo`` shows it.
        parent_id: of the mount it is mounted on; its own for the first one.
        namespace: of the mount namespace, the number that ``/proc/PID/ns/mnt`` shows.
        device: of the file system, as ``MAJOR:MINOR``.
        root: what of the file system is mounted, as a path within it.
        path: where it is mounted, from the root that was asked for.
        options: of this mount, such as ``rw,nosuid,relatime``.
        propagation: such as ``shared:7 master:3``; empty for a private one.
        filesystem: its type, such as ``ext4``.
        source: what is mounted. ``path``, ``root`` and this are the guest's words.
        superblock_options: those of the file system that all of them have, such as ``rw,sync``.
        address: of the ``struct mount``.
    """

    id: int
    parent_id: int
    namespace: int
    device: str
    root: str
    path: str
    options: str
    propagation: str
    filesystem: str
    source: str
    superblock_options: str
    address: Va


class OpenFile(msgspec.Struct, frozen=True, gc=False):
    """This is one descriptor of a process, and what it refers to.

    Args:
        pid: of the process.
        fd: the descriptor's number.
        path: as ``/proc/PID/fd`` shows it, without `` (deleted)``: from the root of the mount
            namespace that the file was opened in, or such as ``socket:[4711]``. It is the guest's
            word: escape it for whatever it is printed on.
        kind: ``file``, ``directory``, ``link``, ``pipe``, ``socket``, ``character device``,
            ``block device`` or ``anonymous``.
        access: ``r``, ``w`` or ``rw``; empty where it is open for neither.
        position: where the next byte is read or written.
        device: of the file system it is in, as ``MAJOR:MINOR``.
        inode: its number there.
        deleted: whether no path leads there any more, or never did.
        address: of the ``struct file``, which several descriptors may share.
    """

    pid: int
    fd: int
    path: str
    kind: str
    access: str
    position: int
    device: str
    inode: int
    deleted: bool
    address: Va


class Socket(msgspec.Struct, frozen=True, gc=False):
    """This is one socket that a process has open, once for each of its descriptors.

    Args:
        pid: of the process.
        fd: the descriptor.
        protocol: as the files of ``/proc/net`` are called: ``tcp``, ``udp6``, ``raw``, ``unix``,
            ``netlink``, ``packet`` and so on.
        local: ``ADDRESS:PORT``, ``[ADDRESS]:PORT``, a path (``@`` for NUL, which begins an abstract
            one), or netlink's port id. Paths are the guest's word.
        remote: its peer's, likewise; empty where there is none.
        state: ``LISTEN``, ``ESTABLISHED``, ``CLOSE`` and so on: the kernel uses TCP's for all.
        namespace: of the network, the number that ``/proc/PID/ns/net`` shows.
        inode: as ``/proc/net`` shows it.
        address: of the ``struct sock``.
    """

    pid: int
    fd: int
    protocol: str
    local: str
    remote: str
    state: str
    namespace: int
    inode: int
    address: Va


class MemoryMapping(msgspec.Struct, frozen=True, gc=False):
    """This is one run of a process's memory that is of one kind.

    Args:
        pid: of the process.
        start: its first address.
        end: the first address behind it.
        permissions: as ``/proc/PID/maps`` shows them, such as ``r-xp``.
        offset: in the file, in bytes; 0 without one.
        device: of the file system of the file, as ``MAJOR:MINOR``; empty without one.
        inode: of the file; 0 without one.
        name: of the file, or such as ``[heap]``, or empty. It is the guest's word.
        deleted: whether no path leads to the file any more, or never did.
        address: of the ``vm_area_struct``.
    """

    pid: int
    start: Va
    end: Va
    permissions: str
    offset: int
    device: str
    inode: int
    name: str
    deleted: bool
    address: Va


class CommandLine(msgspec.Struct, frozen=True, gc=False):
    """This is how a process was called, as its own memory says now: it may have written there.

    Args:
        pid: of the process.
        arguments: its words; empty for kernel threads and zombies.
        name: ``task_struct.comm``.
        address: of its leader's ``task_struct``.
    """

    pid: int
    arguments: tuple[str, ...]
    name: str
    address: Va


class Variable(msgspec.Struct, frozen=True, gc=False):
    """This is one variable of the environment that a process was given.

    Args:
        pid: of the process.
        name: what stands before the first ``=``.
        value: what stands behind it; None where there is none.
    """

    pid: int
    name: str
    value: str | None


class LogRecord(msgspec.Struct, frozen=True, gc=False):
    """This is one record of the kernel's log.

    Args:
        sequence: its number since boot.
        time_s: seconds after the guest's boot.
        level: 0 for an emergency, up to 7 for debugging.
        facility: who speaks, by syslog's numbers: 0 the kernel.
        text: without a line end; may have several lines. It is the guest's word.
        subsystem: such as ``pci``; empty where the record is of no device.
        device: such as ``+pci:0000:00:01.0``; empty likewise.
    """

    sequence: int
    time_s: float
    level: int
    facility: int
    text: str
    subsystem: str
    device: str


class Gap(msgspec.Struct, frozen=True, gc=False):
    """This is a part of the guest that could not be looked at.

    Args:
        structure: what was walked, such as ``task_struct.tasks``.
        address: where the walk stood, None where there is none.
        reason: what was wrong.
    """

    structure: str
    address: Va | None
    reason: str


@dataclass(frozen=True, slots=True)
class Listing(Generic[Row_co]):
    """This is the answer to a question about the guest.

    Nothing found is ``items`` empty and ``gaps`` empty; what could not be looked at is a gap.
    """

    items: tuple[Row_co, ...]
    gaps: tuple[Gap, ...]
    provenance: Provenance

    def __iter__(self) -> Iterator[Row_co]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


class Evidence(msgspec.Struct, frozen=True, gc=False):
    """This is one reason to believe what was found.

    Args:
        claim: what is believed, such as ``KASLR slide 0x1c600000``.
        source: what says so, such as ``IDT gate 0``.
    """

    claim: str
    source: str


class GuestFacts(msgspec.Struct, frozen=True, kw_only=True):
    """This is what is known of the guest as a whole.

    Args:
        os: the family, such as ``linux``.
        release: such as ``6.1.0-56-cloud-amd64``.
        banner: the kernel's own banner line; its word, as ``release`` is: escape both for whatever
            they are printed on.
        architecture: ``x86_64`` or ``aarch64``.
        paging: such as ``5-level``.
        page_table_root: physical address of the kernel's top-level page table.
        page_table_isolation: whether user mode runs on page tables of its own.
        kernel_base: virtual address of the kernel image.
        kernel_slide: bytes by which KASLR moved it.
        build_id: of the kernel, hexadecimal; empty where it has none.
        uptime_s: seconds since boot, None where it could not be read.
        evidence: why all this is believed.
    """

    os: str
    release: str
    banner: str
    architecture: str
    paging: str
    page_table_root: int
    page_table_isolation: bool
    kernel_base: int
    kernel_slide: int
    build_id: str
    uptime_s: float | None
    evidence: tuple[Evidence, ...]


class GuestOS(Protocol):
    """This is the interface that is selected for the operating system that was found.

    Every method is synchronous, reads memory when it is called, and returns a listing that says
    how it was taken. A structure that cannot be walked at all raises WalkFailed.
    """

    def facts(self) -> GuestFacts:
        """This tells which system it is, and the evidence."""
        ...

    def processes(self) -> Listing[Process]:
        """This lists the processes that the kernel's own task list shows, in its order."""
        ...

    def process_ids(self) -> Listing[Process]:
        """This lists the processes that the initial pid namespace knows, by pid.

        It reads another structure than :meth:`processes` does, so that both can be compared.
        """
        ...

    def threads(self) -> Listing[Thread]:
        """This lists the threads of all processes."""
        ...

    def modules(self) -> Listing[Module]:
        """This lists the loaded kernel modules."""
        ...

    def mounts(self, process: Process | None = None) -> Listing[Mount]:
        """This lists the mounts that a process sees, with paths from its own root.

        Args:
            process: who sees them; None for those of all mount namespaces that have a process.
        """
        ...

    def open_files(self, process: Process | None = None) -> Listing[OpenFile]:
        """This lists the open files of a process, or of all."""
        ...

    def sockets(self, process: Process | None = None) -> Listing[Socket]:
        """This lists the sockets that a process has open, or that all have."""
        ...

    def mappings(self, process: Process) -> Listing[MemoryMapping]:
        """This lists the memory mappings of a process, by address."""
        ...

    def command_lines(self, process: Process | None = None) -> Listing[CommandLine]:
        """This lists how a process was called, or how all were."""
        ...

    def environment(self, process: Process) -> Listing[Variable]:
        """This lists the environment that a process was given."""
        ...

    def log(self) -> Listing[LogRecord]:
        """This lists the records of the kernel's log that are still held, the oldest first."""
        ...
