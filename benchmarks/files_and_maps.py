"""Open files and memory mappings of all processes, beside drgn's helpers over the same mapping of RAM.

``python benchmarks/files_and_maps.py [--quick]``. Both sides give the number, the address and the path of
each open file, and the bounds, the address and the file of each mapping. qvmi gives kind, position, inode and
permissions besides, looks again at what changes meanwhile, and names what has no path; drgn has the
kernel's full debug information at hand.
"""

import time
from collections.abc import Callable, Iterator

import drgn
import peer_drgn
from drgn.helpers.linux.fs import d_path, for_each_file
from drgn.helpers.linux.mm import for_each_vma
from drgn.helpers.linux.pid import for_each_task
from looks import KERNEL, make_lab, stopped, vmlinux
from race import Side, Size, agree, in_turns, run, tell

import qvmi
from qvmi import GuestOS
from qvmi.semantics.guest_os import MemoryMapping, OpenFile
from tests.guests.lab import GuestConfig

LIMIT_S = 0.020
NO_PATH = ""
"""drgn names these by their file system only."""

FileRow = tuple[int, int, int, str]
"""pid, descriptor, address, path."""
MapRow = tuple[int, int, int, int, str]
"""pid, start, end, address, path."""


def files(guest: GuestOS) -> list[OpenFile]:
    """This lists the open files of all processes."""
    return list(guest.open_files())


def mappings(guest: GuestOS) -> list[MemoryMapping]:
    """This lists the mappings of all processes."""
    return [row for process in guest.processes() for row in guest.mappings(process)]


def drgn_files(program: drgn.Program) -> list[FileRow]:
    """This lists the open files of all processes, as drgn's helpers do."""
    return list(_drgn_files(program))


def drgn_mappings(program: drgn.Program) -> list[MapRow]:
    """This lists the mappings of all processes, as drgn's helpers do."""
    return list(_drgn_mappings(program))


def _drgn_files(program: drgn.Program) -> Iterator[FileRow]:
    for task in _leaders(program):
        if task.files:
            for number, file in for_each_file(task):
                if file:  # a descriptor may be taken before a file is put there
                    yield task.pid.value_(), number, file.value_(), _drgn_path(file)


def _drgn_mappings(program: drgn.Program) -> Iterator[MapRow]:
    for task in _leaders(program):
        if task.mm:
            for vma in for_each_vma(task.mm):
                path = _drgn_path(vma.vm_file) if vma.vm_file else NO_PATH
                start, end = vma.vm_start.value_(), vma.vm_end.value_()
                yield task.pid.value_(), start, end, vma.value_(), path


def _leaders(program: drgn.Program) -> Iterator[drgn.Object]:
    return (task for task in for_each_task(program) if task.pid == task.tgid)


def _drgn_path(file: drgn.Object) -> str:
    path = d_path(file.f_path)
    return NO_PATH if path.startswith(b"[") else path.decode("utf-8", "backslashreplace")


def _ours(path: str, inode: int) -> str:
    """This is a path as far as both sides tell it."""
    odd = not path.startswith("/") or path.startswith(("/memfd:", "/dev/zero")) or not inode
    return NO_PATH if odd else path


def same(guest: GuestOS, program: drgn.Program) -> None:
    """This checks that both sides give the same of a guest that stands still."""
    agree(
        "open files",
        [(row.pid, row.fd, int(row.address), _ours(row.path, row.inode)) for row in files(guest)],
        drgn_files(program),
    )
    agree(
        "mappings",
        [
            (row.pid, row.start, row.end, int(row.address), _ours(row.name, row.inode))
            for row in mappings(guest)
        ],
        drgn_mappings(program),
    )


def timed(*looks: Callable[[], object]) -> Side:
    """This takes the time of some looks, one behind the other."""

    def side() -> float:
        began = time.perf_counter()
        for look in looks:
            look()
        return time.perf_counter() - began

    return side


def main(size: Size) -> None:
    """This races on one thawed guest."""
    lab = make_lab()
    debug_information = vmlinux(lab)
    with lab.restore(GuestConfig(kernel=KERNEL)) as guest:
        program = peer_drgn.attached(guest.ram_paths[0], debug_information)
        with qvmi.attach_sync(guest.qmp, use_cache=False) as machine:
            linux = machine.guest
            with stopped(guest):
                same(linux, program)
            ours, theirs = in_turns(
                size.of(full=50, quick=2),
                timed(lambda: files(linux), lambda: mappings(linux)),
                timed(lambda: drgn_files(program), lambda: drgn_mappings(program)),
            )
    what = "open files and mappings of all processes"
    tell(what, ours, limit_s=LIMIT_S, peer="drgn", theirs=theirs)


if __name__ == "__main__":
    run(main)
