"""Open files, sockets and mappings of all processes, beside drgn's helpers over the same mapping of RAM.

``python benchmarks/files_and_maps.py [--quick]``. Both sides give the number, the address and the path of
each open file, the addresses, inode and both ends of each socket, and the bounds, the address and the file of
each mapping. qvmi gives kind, position, inode, permissions, protocol and state besides, looks again at what
changes meanwhile, and names what has no path; drgn has the kernel's full debug information at hand.
"""

import socket
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import drgn
import peer_drgn
from drgn.helpers.linux.fs import d_path, for_each_file
from drgn.helpers.linux.mm import for_each_vma
from drgn.helpers.linux.net import SOCK_INODE
from drgn.helpers.linux.pid import for_each_task
from looks import KERNEL, make_lab, stopped, vmlinux
from race import Side, Size, agree, in_turns, run, tell

import qvmi
from qvmi import GuestOS
from qvmi.semantics.guest_os import MemoryMapping, OpenFile, Socket
from tests.guests.lab import GuestConfig

LIMIT_S = 0.020
NO_PATH = ""
"""drgn names these by their file system only."""

Asked = TypeVar("Asked")
FileRow = tuple[int, int, int, str]
"""pid, descriptor, address, path."""
SocketRow = tuple[int, int, int, int, str, str]
"""pid, descriptor, address, inode, its own end, its peer's."""
MapRow = tuple[int, int, int, int, str]
"""pid, start, end, address, path."""


def files(guest: GuestOS) -> list[OpenFile]:
    """This lists the open files of all processes."""
    return list(guest.open_files())


def sockets(guest: GuestOS) -> list[Socket]:
    """This lists the sockets of all processes; of those that nobody has drgn's helpers know nothing."""
    return [row for row in guest.sockets() if row.pid is not None]


def mappings(guest: GuestOS) -> list[MemoryMapping]:
    """This lists the mappings of all processes."""
    return list(guest.mappings())


def drgn_files(program: drgn.Program) -> list[FileRow]:
    """This lists the open files of all processes, as drgn's helpers do."""
    return list(_drgn_files(program))


def drgn_sockets(program: drgn.Program) -> list[SocketRow]:
    """This lists the sockets of all processes, as drgn's helpers do."""
    return list(_drgn_sockets(program))


def drgn_mappings(program: drgn.Program) -> list[MapRow]:
    """This lists the mappings of all processes, as drgn's helpers do."""
    return list(_drgn_mappings(program))


def _drgn_files(program: drgn.Program) -> Iterator[FileRow]:
    for task in _leaders(program):
        if task.files:
            for number, file in for_each_file(task):
                if file:  # a descriptor may be taken before a file is put there
                    yield task.pid.value_(), number, file.value_(), _drgn_path(file)


def _drgn_sockets(program: drgn.Program) -> Iterator[SocketRow]:
    operations = program["socket_file_ops"].address_of_().value_()
    for task in _leaders(program):
        if task.files:
            for number, file in for_each_file(task):
                if file and file.f_op.value_() == operations:
                    its = drgn.cast("struct socket *", file.private_data)
                    ends = _drgn_ends(program, its.sk)
                    inode = SOCK_INODE(its).i_ino.value_()
                    yield task.pid.value_(), number, its.sk.value_(), inode, *ends


def _drgn_ends(program: drgn.Program, sock: drgn.Object) -> tuple[str, str]:
    common = sock.member_("__sk_common")
    family, ports = common.skc_family.value_(), (common.skc_num.value_(), _peer_port(common))
    if family == socket.AF_INET:
        ends = (common.skc_rcv_saddr, common.skc_daddr)
        own, peer = (socket.inet_ntop(family, end.to_bytes_()) for end in ends)
        return f"{own}:{ports[0]}", f"{peer}:{ports[1]}"
    if family == socket.AF_INET6:
        ends = (common.skc_v6_rcv_saddr, common.skc_v6_daddr)
        own, peer = (socket.inet_ntop(family, end.to_bytes_()) for end in ends)
        return f"[{own}]:{ports[0]}", f"[{peer}]:{ports[1]}"
    if family == socket.AF_UNIX:
        its = drgn.cast("struct unix_sock *", sock)
        peer = drgn.cast("struct unix_sock *", its.peer)
        return _unix_name(program, its), _unix_name(program, peer) if peer else ""
    if family == socket.AF_NETLINK:
        return str(drgn.cast("struct netlink_sock *", sock).portid.value_()), ""
    return "", ""


def _peer_port(common: drgn.Object) -> int:
    return int.from_bytes(common.skc_dport.to_bytes_(), "big")


def _unix_name(program: drgn.Program, sock: drgn.Object) -> str:
    held = sock.addr
    if not held:
        return ""
    path: bytes = program.read(held.name[0].sun_path.address_of_().value_(), held.len.value_() - 2)
    path = path if path.startswith(b"\0") else path.rstrip(b"\0")
    return path.replace(b"\0", b"@").decode("utf-8", "backslashreplace")


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
        "sockets",
        [
            (row.pid, row.fd, int(row.address), row.inode, row.local, row.remote)
            for row in sockets(guest)
        ],
        drgn_sockets(program),
    )
    agree(
        "mappings",
        [
            (row.pid, row.start, row.end, int(row.address), _ours(row.name, row.inode))
            for row in mappings(guest)
        ],
        drgn_mappings(program),
    )


def timed(asked: Asked, *looks: Callable[[Asked], object]) -> Side:
    """This takes the time of some looks, one behind the other."""

    def side() -> float:
        began = time.perf_counter()
        for look in looks:
            look(asked)
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
            for what, ours, theirs in (
                ("open files", files, drgn_files),
                ("sockets", sockets, drgn_sockets),
                ("mappings", mappings, drgn_mappings),
            ):
                race(size, f"{what} of all processes", timed(linux, ours), timed(program, theirs))
            race(
                size,
                f"open files, sockets and mappings of all {len(linux.processes())} processes",
                timed(linux, files, sockets, mappings),
                timed(program, drgn_files, drgn_sockets, drgn_mappings),
            )


def race(size: Size, what: str, ours: Side, theirs: Side) -> None:
    """This tells how long both sides take, in turns."""
    us, them = in_turns(size.of(full=50, quick=2), ours, theirs)
    tell(what, us, limit_s=LIMIT_S, peer="drgn", theirs=them)


if __name__ == "__main__":
    run(main)
