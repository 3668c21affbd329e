"""The selected interface: what any guest operating system can be asked, and the rows it answers with."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import msgspec

from qvmi.addr import Va
from qvmi.view import Provenance

__all__ = [
    "Evidence",
    "Gap",
    "GuestFacts",
    "GuestOS",
    "Listing",
    "Module",
    "Process",
    "Thread",
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
