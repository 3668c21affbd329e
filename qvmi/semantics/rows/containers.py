"""Rows about the worlds that processes live in: namespaces and cgroups."""

import msgspec

from qvmi.addr import Va

__all__ = ["Cgroup", "CgroupHierarchy", "Namespaces"]


class Namespaces(msgspec.Struct, frozen=True, gc=False):
    """These are the namespaces of a process.

    Each is the number that ``/proc/PID/ns`` shows; None where the process is in none of that kind
    any more, as a zombie, or where the kernel has no such kind.

    Args:
        pid: of the process, in the initial pid namespace.
        name: ``task_struct.comm``.
        inner_pid: its id in its own pid namespace, which it knows itself by.
        mnt, net, uts, ipc, cgroup, time: the namespaces of that kind.
        pid_ns: the pid namespace that it is in; its children may be put in another.
        user: the user namespace of its credentials.
        hostname: that of its UTS namespace; None without one. It is the guest's word.
        address: of the ``task_struct``.
    """

    pid: int
    name: str
    inner_pid: int
    mnt: int | None
    pid_ns: int
    net: int | None
    uts: int | None
    ipc: int | None
    user: int
    cgroup: int | None
    time: int | None
    hostname: str | None
    address: Va


class Cgroup(msgspec.Struct, frozen=True, gc=False):
    """This is the cgroup of a process in one hierarchy.

    Args:
        pid: of the process.
        name: ``task_struct.comm``.
        hierarchy: its number; 0 is cgroup v2.
        controllers: of a v1 hierarchy, such as ``cpu,cpuacct`` or ``name=systemd``; empty for v2.
        path: from the root of the hierarchy, as ``/proc/PID/cgroup`` shows it to whoever is in the
            initial cgroup namespace. It is the guest's word.
        deleted: whether the cgroup is removed.
        runtime: what keeps the container that the path says it is in: ``docker``, ``podman``,
            ``containerd``, ``cri-o``, ``nerdctl``, ``kubernetes`` (a pod's container, whose
            runtime is not told), ``lxc`` or ``systemd-nspawn``; empty outside of containers.
        container: the id that the runtime knows it by, or its name.
        pod: the id of the Kubernetes pod that it belongs to; empty without one.
        address: of the ``struct cgroup``.
    """

    pid: int
    name: str
    hierarchy: int
    controllers: str
    path: str
    deleted: bool
    runtime: str
    container: str
    pod: str
    address: Va


class CgroupHierarchy(msgspec.Struct, frozen=True, gc=False):
    """This is one hierarchy of cgroups.

    Args:
        hierarchy: its number; 0 is cgroup v2.
        name: of one that was given a name, such as ``systemd``.
        release_agent: the program that the kernel runs, as root and outside of every container, when a
            cgroup of it is left empty; empty for none. It is the guest's word.
        address: of the ``struct cgroup_root``.
    """

    hierarchy: int
    name: str
    release_agent: str
    address: Va
