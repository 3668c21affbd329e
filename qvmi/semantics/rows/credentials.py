"""Rows about what processes may do."""

import msgspec

from qvmi.addr import Va

__all__ = ["CapabilitySet", "Credentials"]


class CapabilitySet(msgspec.Struct, frozen=True, gc=False):
    """This is a set of capabilities. Corresponds to ``kernel_cap_t``.

    Args:
        number: as ``/proc/PID/status`` shows it, but not in hexadecimal.
        names: such as ``cap_net_admin``, by number; the number itself for one without a name.
    """

    number: int
    names: tuple[str, ...]


class Credentials(msgspec.Struct, frozen=True, gc=False):
    """This is who a process is for the kernel, and what it may do.

    Ids are those of the initial user namespace. All is told of ``task_struct.real_cred`` of its
    leader, as ``/proc/PID/status`` does.

    Args:
        pid: of the process.
        name: ``task_struct.comm``.
        uid: the real user; euid, suid, fsuid: the effective, saved and file system one.
        gid: the real group; egid, sgid, fsgid: likewise.
        groups: the supplementary groups, in the kernel's order.
        inheritable, permitted, effective, bounding, ambient: the sets of capabilities.
        securebits: by ``SECBIT_…`` of linux/securebits.h.
        no_new_privs: whether exec gives it nothing more.
        seccomp: ``disabled``, ``strict``, ``filter`` or ``dead``; empty where the kernel has none.
        label: of AppArmor, such as ``unconfined`` or ``:namespace:profile``, without its mode;
            empty where AppArmor is not built in.
        user_namespace: the number that ``/proc/PID/ns/user`` shows.
        cred: of ``task_struct.cred``, by which it acts; another one than real_cred only while
            the kernel acts for somebody else.
        real_cred: of ``task_struct.real_cred``, by which others act on it.
        shared_with: the pids of other processes that have one of these, where it is the real_cred
            of one of them; 0 where its real_cred is the idle task's. The kernel gives each process its
            own: who shares one for longer than a moment was given it by somebody else.
        address: of the ``task_struct``.
    """

    pid: int
    name: str
    uid: int
    euid: int
    suid: int
    fsuid: int
    gid: int
    egid: int
    sgid: int
    fsgid: int
    groups: tuple[int, ...]
    inheritable: CapabilitySet
    permitted: CapabilitySet
    effective: CapabilitySet
    bounding: CapabilitySet
    ambient: CapabilitySet
    securebits: int
    no_new_privs: bool
    seccomp: str
    label: str
    user_namespace: int
    cred: Va
    real_cred: Va
    shared_with: tuple[int, ...]
    address: Va
