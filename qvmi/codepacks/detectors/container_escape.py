"""Processes of a container that reach the host, and what lets them.

A process is taken to be in a container by the cgroup that its runtime has put it into. Its mounts, its
process ids and what it may do to devices are then not those of the host.

References: MITRE ATT&CK T1611 Escape to Host; kernel/cgroup/cgroup-v1.c (``release_agent``),
namespaces(7), capabilities(7).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from qvmi.codepacks.codepack import Finding, Observation, Severity, Unseen
from qvmi.codepacks.detectors.process_evidence import by_address, identity, seen, short, told
from qvmi.memory.physical import PhysicalMemory
from qvmi.policy import Grant
from qvmi.semantics.guest_os import (
    Cgroup,
    CgroupHierarchy,
    Credentials,
    GuestOS,
    Mount,
    Namespaces,
    OpenFile,
    Process,
)

__all__ = ["ContainerEscape"]

_TECHNIQUE: Final = "T1611"
_INIT: Final = 1
_SETTLE_S: Final = 5.0
"""Longest time for which a runtime is believed to be just making a container: it is in the cgroup, and not
yet in the namespaces."""
_CAPABILITIES: Final = {
    1 << 2: "cap_dac_read_search",
    1 << 16: "cap_sys_module",
    1 << 17: "cap_sys_rawio",
}
"""What a runtime gives only when it is told to give everything, and what each of them suffices for."""
_MEMORY: Final = frozenset({"/dev/mem", "/dev/kmem", "/dev/port", "/proc/kcore"})
_RUNTIME_SOCKETS: Final = ("/docker.sock", "/containerd.sock", "/crio.sock", "/podman.sock")

AGENTS: Final = ("/lib/systemd/systemd-cgroups-agent", "/usr/lib/systemd/systemd-cgroups-agent")


@dataclass(frozen=True, slots=True)
class ContainerEscape:
    """This looks at the processes of containers, and at what the kernel runs for cgroups.

    Args:
        interval_s: from one look to the next.
        agents: programs that may be run when a cgroup is left empty.
        privileged: names of processes in containers that may have every right.
    """

    interval_s: float = 1.0
    agents: Sequence[str] = AGENTS
    privileged: Sequence[str] = ()

    @property
    def name(self) -> str:
        """This is its name on the bus."""
        return "container-escape"

    @property
    def grants(self) -> frozenset[Grant]:
        """It only reads."""
        return frozenset({Grant.READ_MEMORY})

    def inspect(self, guest: GuestOS, memory: PhysicalMemory) -> Iterator[Finding | Unseen]:  # noqa: ARG002 - the contract gives it
        """This looks once."""
        for hierarchy in guest.cgroup_hierarchies():
            yield from self._agent(hierarchy)
        processes = by_address(guest.processes())
        cgroups = {one.pid: one for one in guest.cgroups() if one.runtime and not one.deleted}
        spaces = {one.pid: one for one in guest.namespaces() if one.address in processes}
        host = spaces.get(_INIT)
        inside = [
            _Inside(processes[its.address], cgroups[pid], its)
            for pid, its in spaces.items()
            if pid in cgroups and processes[its.address].pid == pid
        ]
        if not inside:
            return
        if host is None:
            reason = "process 1 is not seen: there is no host to compare them with"
            yield Unseen(what="processes of containers", reason=reason)
            return
        for one in inside:
            yield from _shared_with_host(one, host)
        yield from _mounted(guest.mounts(), inside, host)
        credentials = {its.pid: its for its in guest.credentials()}
        files: dict[int, list[OpenFile]] = defaultdict(list)
        for file in guest.open_files():
            files[file.pid].append(file)
        for one in inside:
            if one.process.name not in self.privileged:
                yield from _allowed(one, credentials.get(one.process.pid), credentials.get(_INIT))
            yield from _devices(one, files[one.process.pid])

    def _agent(self, hierarchy: CgroupHierarchy) -> Iterator[Finding]:
        if not hierarchy.release_agent or hierarchy.release_agent in self.agents:
            return
        yield Finding(
            claim=f"the kernel runs {short(hierarchy.release_agent)} as root when a cgroup of hierarchy "
            f"{hierarchy.hierarchy} is left empty",
            severity=Severity.HIGH,
            technique=_TECHNIQUE,
            key=f"release_agent: {hierarchy.address:#x}",
            evidence=(seen("cgroup_root", hierarchy, ("hierarchy", "name", "release_agent")),),
        )


@dataclass(frozen=True, slots=True)
class _Inside:
    """This is a process of a container."""

    process: Process
    cgroup: Cgroup
    spaces: Namespaces

    @property
    def words(self) -> str:
        """This is it in words."""
        name = short(self.cgroup.container)[:12]
        return f"{told(self.process)} of the {self.cgroup.runtime} container {name}"

    def finding(self, words: str, kind: str, severity: Severity, *evidence: Observation) -> Finding:
        """This says something of it."""
        its = seen("task_struct.cgroups", self.cgroup, ("pid", "path", "runtime", "container"))
        return Finding(
            claim=f"{self.words} {words}",
            severity=severity,
            technique=_TECHNIQUE,
            key=f"{kind}: {identity(self.process)}",
            evidence=(its, *evidence),
            settle_s=_SETTLE_S,
        )


def _shared_with_host(one: _Inside, host: Namespaces) -> Iterator[Finding]:
    """This tells of the namespaces of the host that a process of a container is in."""
    its = one.spaces
    for kind, number, hosts, severity in (
        ("mount", its.mnt, host.mnt, Severity.HIGH),
        ("pid", its.pid_ns, host.pid_ns, Severity.MEDIUM),
    ):
        if number is not None and number == hosts:
            yield one.finding(
                f"is in the {kind} namespace of the host's first process",
                f"{kind} namespace",
                severity,
                seen("task_struct.nsproxy", its, ("pid", "mnt", "pid_ns", "user", "inner_pid")),
                seen("nsproxy of process 1", host, ("pid", "mnt", "pid_ns", "user")),
            )


def _mounted(
    mounts: Iterable[Mount], inside: Sequence[_Inside], host: Namespaces
) -> Iterator[Finding]:
    """This tells of what containers see of the host's root file system, and of its runtime's sockets."""
    by_namespace: dict[int, list[Mount]] = defaultdict(list)
    for mount in _uncovered(mounts):
        by_namespace[mount.namespace].append(mount)
    root = next((one for one in by_namespace[host.mnt or 0] if one.path == "/"), None)
    first: dict[int, _Inside] = {}
    for one in inside:
        if one.spaces.mnt is not None and one.spaces.mnt != host.mnt:
            first.setdefault(one.spaces.mnt, one)
    names = ("path", "root", "device", "filesystem", "source", "namespace")
    for namespace, one in first.items():
        for mount in by_namespace[namespace]:
            evidence = seen("mnt_namespace", mount, names)
            place = f"{mount.namespace} {mount.id}"
            if root is not None and (mount.device, mount.root) == (root.device, "/"):
                words = f"sees the host's root file system at {short(mount.path)}"
                its_root = seen("mnt_namespace of process 1", root, names)
                yield one.finding(words, f"root {place}", Severity.HIGH, evidence, its_root)
            elif mount.root.endswith(_RUNTIME_SOCKETS):
                words = f"has the runtime's own socket at {short(mount.path)}"
                yield one.finding(words, f"socket {place}", Severity.MEDIUM, evidence)


def _uncovered(mounts: Iterable[Mount]) -> list[Mount]:
    """These are the mounts without those that another one lies upon in the very same place.

    The root that the kernel began with lies below that of every namespace, and nobody sees it.
    """
    every = list(mounts)
    covered = {(one.namespace, one.parent_id, one.path) for one in every if one.id != one.parent_id}
    return [one for one in every if (one.namespace, one.id, one.path) not in covered]


def _allowed(one: _Inside, its: Credentials | None, host: Credentials | None) -> Iterator[Finding]:
    """This tells of rights over the host itself, which count in its own user namespace alone."""
    if its is None or host is None or its.user_namespace != host.user_namespace:
        return
    found = [name for bit, name in _CAPABILITIES.items() if its.effective.number & bit]
    if found:
        yield one.finding(
            f"has every right over the host: {', '.join(found)}",
            "capabilities",
            Severity.LOW,
            seen("task_struct.real_cred", its, ("pid", "euid", "user_namespace", "real_cred")),
        )


def _devices(one: _Inside, files: Iterable[OpenFile]) -> Iterator[Finding]:
    """This tells of disks and of memory that a process of a container has open."""
    for file in files:
        if file.kind == "block device" or file.path in _MEMORY:
            yield one.finding(
                f"has {short(file.path)} open, which is the host's",
                f"device {file.device} {file.inode}",
                Severity.HIGH,
                seen("files_struct.fdt", file, ("pid", "fd", "path", "kind", "access")),
            )
