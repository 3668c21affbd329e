"""What processes do that they should not, planted in running guests; and what is not told though it is there.

The lab's guest has a few such processes of its own from the start (tests/guests/lab/init/population.c): what
a detector says of the guest at rest must be about just those.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from qvmi.codepacks.credentials import CredentialWatch
from qvmi.codepacks.file_watch import FileWatch
from qvmi.codepacks.impostors import Impostors
from qvmi.codepacks.injection import Injection
from qvmi.codepacks.unusual_code import UnusualCode
from qvmi.semantics.guest_os import Process
from tests.guests.guest_program import install
from tests.guests.lab import GuestConfig, Lab
from tests.guests.pool import GuestPool
from tests.guests.watched import POINTER, Watched, of_pid, told, watched

KERNELS: Final = ("6.1", "7.x")


@pytest.fixture(scope="module", params=KERNELS)
def its(lab: Lab, profiles: Path, request: pytest.FixtureRequest) -> Iterator[Watched]:
    with ExitStack() as stack:
        guest = GuestPool(lab, stack).restore(GuestConfig(kernel=request.param))
        yield stack.enter_context(watched(guest, profiles))


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


@pytest.mark.parametrize("member", ["cap_effective", "group_info"])
def test_what_is_overwritten_alone_is_found(
    its: Watched, rights: CredentialWatch, member: str
) -> None:
    """Of capabilities the kernel asks for the effective ones, of groups for those in a list, too."""
    with as_user(its, "exec sleep 2998", "sleep") as process:
        assert its.look(rights) == {}
        place = cred_of(its, process) + its.member("cred", member)
        if member == "cap_effective":
            data = (1 << 21).to_bytes(8, "little")  # CAP_SYS_ADMIN
        else:
            place = its.pointer(place) + its.member("group_info", "gid")
            data = (42).to_bytes(4, "little")
        with its.written(place, data):
            finding = its.sees(rights, of_pid(process.pid, "T1068"))
            status = its.guest.run(f"grep -E 'CapEff|Groups' /proc/{process.pid}/status").decode()
    assert re.search(r"CapEff:\s0*200000$|Groups:.*\b42\b", status, re.MULTILINE)
    assert "effective capabilities 0x200000" in finding.claim or "group 42" in finding.claim


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
