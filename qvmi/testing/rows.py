"""Rows for fake guests, of which a test names only what it is about."""

from typing import Final

import msgspec

from qvmi.addr import Va
from qvmi.semantics.guest_os import (
    CachedFile,
    CapabilitySet,
    Credentials,
    MemoryMapping,
    Module,
    Mount,
    Process,
    Program,
    Socket,
)

__all__ = [
    "fake_cached_file",
    "fake_credentials",
    "fake_mapping",
    "fake_module",
    "fake_mount",
    "fake_process",
    "fake_program",
    "fake_socket",
]

_TASKS, _TASK_SPACING = 0xFFFF_8880_0000_0000, 0x4000
_SOCKETS: Final = 0xFFFF_8881_0000_0000
_SPACING: Final = 0x1000
_MODULES: Final = 0xFFFF_FFFF_C000_0000
_MOUNTED: Final = 0xFFFF_8882_0000_0000
_MOUNTS: Final = 4026531841
"""The mount namespace that a guest begins with."""
_CREDENTIALS: Final = 0xFFFF_8883_0000_0000
_INODES: Final = 0xFFFF_8884_0000_0000
_USERS: Final = 4026531837
"""The user namespace that a guest begins with."""
_NETWORK: Final = 4026531840
"""The network namespace that a guest begins with."""


def fake_process(pid: int, *, name: str = "fake", **changes: object) -> Process:
    """This makes a process with an address and a start time of its own; ``changes`` are fields."""
    process = Process(
        pid=pid,
        tgid=pid,
        ppid=min(pid - 1, 1),
        uid=0,
        gid=0,
        state="S",
        name=name,
        address=Va(_TASKS + pid * _TASK_SPACING),
        kernel_thread=False,
        start_time_s=float(pid),
    )
    return msgspec.structs.replace(process, **changes)


def fake_program(process: Process, **changes: object) -> Program:
    """This makes what a process runs: a file of root's that its parent called; ``changes`` are fields."""
    program = Program(
        pid=process.pid,
        name=process.name,
        kernel_thread=process.kernel_thread,
        memory=None if process.kernel_thread else Va(process.address + _SPACING),
        path="" if process.kernel_thread else f"/usr/bin/{process.name}",
        deleted=False,
        device="" if process.kernel_thread else "8:1",
        inode=0 if process.kernel_thread else 100 + process.pid,
        mode=0 if process.kernel_thread else 0o100755,
        owner=0,
        execs=0 if process.kernel_thread else 1,
        exec_id=1,
        ppid=process.ppid,
        tracer=None,
        address=process.address,
    )
    return msgspec.structs.replace(program, **changes)


def fake_socket(pid: int | None, *, fd: int | None = 3, **changes: object) -> Socket:
    """This makes a TCP socket that listens on port 80; ``changes`` are fields. No pid: nobody has it."""
    held = pid is not None
    socket = Socket(
        pid=pid,
        fd=fd if held else None,
        protocol="tcp",
        local="0.0.0.0:80",
        remote="0.0.0.0:0",
        state="LISTEN",
        namespace=_NETWORK,
        inode=1000 + (pid or 0) if held else 0,
        address=Va(_SOCKETS + (pid or 0) * _SPACING + (fd or 0)),
    )
    return msgspec.structs.replace(socket, **changes)


def fake_mount(path: str, **changes: object) -> Mount:
    """This makes a mount of ``proc`` at a path; ``changes`` are fields."""
    mount = Mount(
        id=20 + len(path),
        parent_id=1,
        namespace=_MOUNTS,
        device="0:20",
        root="/",
        path=path,
        options="rw,relatime",
        propagation="",
        filesystem="proc",
        source="proc",
        superblock_options="rw",
        address=Va(_MOUNTED + len(path) * _SPACING),
    )
    return msgspec.structs.replace(mount, **changes)


def fake_credentials(process: Process, uid: int = 0, **changes: object) -> Credentials:
    """This makes the credentials of a user, and all capabilities if it is root; ``changes`` are fields."""
    none, every = CapabilitySet(0, ()), CapabilitySet((1 << 41) - 1, ("all",))
    its = none if uid else every
    cred = Va(_CREDENTIALS + process.pid * _SPACING)
    users = dict.fromkeys(("uid", "euid", "suid", "fsuid", "gid", "egid", "sgid", "fsgid"), uid)
    credentials = Credentials(
        pid=process.pid,
        name=process.name,
        **users,
        groups=(),
        inheritable=none,
        permitted=its,
        effective=its,
        bounding=every,
        ambient=none,
        securebits=0,
        no_new_privs=False,
        seccomp="disabled",
        label="unconfined",
        user_namespace=_USERS,
        cred=cred,
        real_cred=cred,
        shared_with=(),
        address=process.address,
    )
    return msgspec.structs.replace(credentials, **changes)


def fake_cached_file(path: str, *, size: int = 0, **changes: object) -> CachedFile:
    """This makes a file that is in the page cache; ``changes`` are fields."""
    inode = sum(path.encode())
    file = CachedFile(
        path=path,
        filesystem="ext4",
        device="8:1",
        inode=inode,
        size=size,
        cached=1,
        dirty=0,
        deleted=False,
        changed=1,
        address=Va(_INODES + inode * _SPACING),
    )
    return msgspec.structs.replace(file, **changes)


def fake_mapping(
    process: Process, start: int = 0x5555_0000_0000, **changes: object
) -> MemoryMapping:
    """This makes a page of heap; ``changes`` are fields."""
    mapping = MemoryMapping(
        pid=process.pid,
        start=Va(start),
        end=Va(start + _SPACING),
        permissions="rw-p",
        offset=0,
        device="",
        inode=0,
        name="[heap]",
        deleted=False,
        address=Va(process.address + start % _SPACING),
    )
    return msgspec.structs.replace(mapping, **changes)


def fake_module(name: str, *, place: int = 0, **changes: object) -> Module:
    """This makes a module that is loaded; ``place`` tells several apart, ``changes`` are fields."""
    address = _MODULES + place * 2 * _SPACING
    module = Module(
        name=name,
        address=Va(address),
        size=_SPACING,
        state="live",
        struct_address=Va(address + _SPACING),
    )
    return msgspec.structs.replace(module, **changes)
