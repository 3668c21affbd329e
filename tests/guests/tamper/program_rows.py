"""Programs that are not what they seem: rows for the codepacks of unusual code, injection and impostors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from qvmi.codepacks.detectors.file_watch import FileWatch
from qvmi.codepacks.detectors.impostors import Impostors
from qvmi.codepacks.detectors.injection import Injection
from qvmi.codepacks.detectors.unusual_code import UnusualCode
from tests.guests.guest_program import install
from tests.guests.tamper.mutation import Mutation
from tests.guests.tamper.scenario import Scenario, Shown, Sign, Way
from tests.guests.tamper.scene import Scene
from tests.guests.watched import POINTER, Watched

__all__ = ["PROGRAM_ROWS"]

_FROM_MEMORY: Final = """
static char room[4096];
static void run(int count, char **words) {
    char *again[] = {"innocent", "rest", 0}, *none[] = {0};
    while (count > 1)
        call(34, 0, 0, 0, 0); /* pause */
    long from = call(2, (long)words[0], 0, 0, 0); /* open */
    long to = call(319, (long)"evil", 0, 0, 0); /* memfd_create */
    long size = call(0, from, (long)room, sizeof room, 0); /* read */
    call(1, to, (long)room, size, 0); /* write */
    char path[] = "/proc/self/fd/N";
    path[14] = '0' + to;
    call(59, (long)path, (long)again, (long)none, 0); /* execve */
    call(60, 1, 0, 0, 0); /* exit */
}
"""
_WRITES_CODE: Final = """
static void run(int count, char **words) {
    long end = call(12, 0, 0, 0, 0); /* brk */
    long page = (end + 4095) & -4096;
    call(12, page + 4096, 0, 0, 0);
    call(10, page, 4096, 7, 0); /* mprotect: read, write and execute */
    for (;;)
        call(34, 0, 0, 0, 0); /* pause */
}
"""
_ATTACHES: Final = """
static void run(int count, char **words) {
    long pid = 0;
    for (char *digit = words[count - 1]; *digit; digit++)
        pid = pid * 10 + *digit - '0';
    call(101, 0x4206, pid, 0, 0); /* ptrace(PTRACE_SEIZE) */
    for (;;)
        call(34, 0, 0, 0, 0); /* pause */
}
"""
_KERNEL_THREAD: Final = 0x20_0000
"""``PF_KTHREAD`` of include/linux/sched.h."""


@contextmanager
def _running(its: Watched, command: str) -> Iterator[int]:
    """This is a program that goes on, in the guest, for the length of the block."""
    pid = its.start(command)
    try:
        yield pid
    finally:
        its.guest.run(f"kill -9 {pid}")


# ------------------------------------------------------------------------------------------- unusual code


@contextmanager
def _memory_file(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    install(scene.guest, "/run/loader", _FROM_MEMORY)
    with _running(scene.its, "/run/loader") as pid:
        program = scene.its.process("4", pid=pid)
        assert scene.run(f"readlink /proc/{pid}/exe") == "/memfd:evil (deleted)\n"
        shown = Shown(
            "mm_struct.exe_file",
            address=program.address,
            facts={"pid": pid, "path": "/memfd:evil", "deleted": True},
        )
        yield (Sign("runs /memfd:evil, which was never in a folder", (shown,)),)
    scene.run("rm /run/loader")


@contextmanager
def _replaced(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    scene.run("cp /bin/busybox /run/busybox-daemon")
    with _running(scene.its, "/run/busybox-daemon sleep 3000") as pid:
        scene.its.process("busybox-daemon", pid=pid)
        scene.run("cp /bin/busybox /run/new; mv /run/new /run/busybox-daemon")
        gone = "/run/busybox-daemon (deleted)\n"
        assert scene.run(f"readlink /proc/{pid}/exe") == gone
        facts = {"pid": pid, "path": "/run/busybox-daemon", "deleted": True}
        claim = f"process {pid} (busybox-daemon) runs /run/busybox-daemon, which was deleted"
        yield (Sign(claim, (Shown("mm_struct.exe_file", facts=facts),), "medium"),)
    scene.run("rm /run/busybox-daemon")


@contextmanager
def _hollow(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    its = scene.its
    victim, other = its.process("httpd"), its.process("title")
    memory, file = its.member("task_struct", "mm"), its.member("mm_struct", "exe_file")
    place = its.pointer(victim.address + memory) + file
    foreign = its.pointer(its.pointer(other.address + memory) + file)
    with its.written(place, POINTER.pack(foreign)):
        assert scene.run(f"readlink /proc/{victim.pid}/exe") == "/init\n"
        evidence = (
            Shown("mm_struct.exe_file", facts={"pid": victim.pid, "path": "/init"}),
            Shown("mm_struct.mm_mt", present=False),
            *(Shown("mm_struct.mm_mt", facts={"name": one}) for one in ("/bin/busybox", "[vdso]")),
        )
        claim = f"process {victim.pid} (httpd) runs other code than its executable /init"
        yield (Sign(claim, evidence),)


@contextmanager
def _writable(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    install(scene.guest, "/run/scribe", _WRITES_CODE)
    with _running(scene.its, "/run/scribe") as pid:
        scene.its.process("scribe", pid=pid)
        start, _, rest = scene.run(f"grep rwxp /proc/{pid}/maps").partition("-")
        facts = {"start": int(start, 16), "end": int(rest.split()[0], 16), "permissions": "rwxp"}
        shown = Shown("mm_struct.mm_mt", facts=facts)
        yield (Sign(f"process {pid} (scribe) runs code that is in no file: 1 mappings", (shown,)),)
    scene.run("rm /run/scribe")


# ---------------------------------------------------------------------------------------------- injection


@contextmanager
def _attached(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    victim = scene.its.process("httpd")
    install(scene.guest, "/run/attach", _ATTACHES)
    with _running(scene.its, f"/run/attach {victim.pid}") as pid:
        scene.its.process("attach", pid=pid)
        assert scene.run(f"grep TracerPid /proc/{victim.pid}/status").split()[1] == f"{pid}"
        evidence = (
            Shown("task_struct.ptrace", facts={"pid": victim.pid, "tracer": pid}),
            Shown("mm_struct.exe_file", facts={"pid": pid, "path": "/run/attach"}),
        )
        by = f"is traced by process {pid} (attach), which did not start it"
        yield (Sign(f"process {victim.pid} (httpd) {by}", evidence),)
    scene.run("rm /run/attach")


@contextmanager
def _preloaded(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    with _running(scene.its, "LD_PRELOAD=/run/evil.so sleep 2997") as pid:
        scene.its.process("sleep", pid=pid)
        environment = scene.run(f"tr '\\0' '\\n' </proc/{pid}/environ").split()
        assert "LD_PRELOAD=/run/evil.so" in environment
        facts = {"pid": pid, "name": "sleep", "LD_PRELOAD": "/run/evil.so"}
        claim = f"process {pid} (sleep), and 0 more, were started with LD_PRELOAD=/run/evil.so"
        yield (Sign(claim, (Shown("mm_struct.env_start", facts=facts),)),)


@contextmanager
def _preload_file(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    scene.run("mkdir -p /etc; echo /lib/evil.so >/etc/ld.so.preload")
    try:
        inode = int(scene.run("stat -c %i /etc/ld.so.preload"))
        facts = {"path": "/etc/ld.so.preload", "inode": inode, "text": "/lib/evil.so\n"}
        claim = "/etc/ld.so.preload has every program load /lib/evil.so"
        yield (Sign(claim, (Shown("page cache", facts=facts),)),)
    finally:
        scene.run("rm /etc/ld.so.preload")


@contextmanager
def _memory_open(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    path = f"/proc/{scene.its.process('httpd').pid}/mem"
    with _running(scene.its, f"sleep 2996 3<>{path}") as pid:
        scene.its.process("sleep", pid=pid)
        facts = {"pid": pid, "fd": 3, "path": path}
        claim = f"process {pid} (sleep) can write the memory of process {path.split('/')[2]}"
        yield (Sign(claim, (Shown("files_struct.fdt", facts=facts),)),)


# ---------------------------------------------------------------------------------------------- impostors


@contextmanager
def _called(scene: Scene, argument: str, name: str, words: str) -> Iterator[tuple[Sign, ...]]:
    """This is a program that runs under a name and with a first argument of its own choice."""
    scene.run("cp /init /run/resident")
    variables = f"QVMI_RESIDENT_FD=1 QVMI_RESIDENT_COMM={name}"
    command = f"{variables} bash -c 'exec -a \"{argument}\" /run/resident'"
    with _running(scene.its, command) as pid:
        scene.its.process(name, pid=pid)
        assert scene.run(f"cat /proc/{pid}/cmdline") == f"{argument}\0"
        evidence = (
            Shown("task_struct", facts={"pid": pid, "path": "/run/resident"}),
            Shown("mm_struct.arg_start", facts={"arguments": argument}),
        )
        yield (Sign(f"process {pid} ({name}) {words}", evidence),)
    scene.run("rm /run/resident")


@contextmanager
def _in_brackets(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    words = "calls itself [kworker/7:7], as ps writes kernel threads"
    with _called(scene, "[kworker/7:7]", "innocent", words) as signs:
        yield signs


@contextmanager
def _as_daemon(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    words = "is called sshd, and runs /run/resident"
    with _called(scene, "/usr/sbin/sshd", "sshd", words) as signs:
        yield signs


@contextmanager
def _adopted(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    its = scene.its
    thread, victim = its.process("kdevtmpfs"), its.process("httpd")
    place = thread.address + its.member("task_struct", "real_parent")
    with its.written(place, POINTER.pack(victim.address)):
        assert f"PPid:\t{victim.pid}\n" in scene.run(f"cat /proc/{thread.pid}/status")
        facts = {"pid": thread.pid, "ppid": victim.pid, "kernel_thread": True}
        shown = Shown("task_struct", address=thread.address, facts=facts)
        words = f"is a kernel thread, and a child of process {victim.pid}"
        yield (Sign(f"process {thread.pid} (kdevtmpfs) {words}", (shown,)),)


@contextmanager
def _flagged(scene: Scene) -> Iterator[tuple[Sign, ...]]:
    its = scene.its
    victim = its.process("httpd")
    memory = its.pointer(victim.address + its.member("task_struct", "mm"))
    place = victim.address + its.member("task_struct", "flags")
    flags = its.pointer(place) & 0xFFFF_FFFF
    with its.written(place, (flags | _KERNEL_THREAD).to_bytes(4, "little")):
        facts = {"pid": victim.pid, "kernel_thread": True, "memory": memory}
        shown = Shown("task_struct", address=victim.address, facts=facts)
        claim = f"process {victim.pid} (httpd) is a kernel thread, and has memory of a program's"
        yield (Sign(claim, (shown,)),)


def _injection() -> Injection:
    return Injection(files=FileWatch(every_s=0.0))


def _mutation(name: str, old: str, new: str) -> tuple[Mutation]:
    return (Mutation(f"codepacks.detectors.{name}", old, new),)


_INSIDE, _OUTSIDE = Way.INSIDE, Way.OUTSIDE

PROGRAM_ROWS: Final = (
    Scenario(
        *("a program runs from a file in memory", "unusual-code", "T1620", _INSIDE),
        *(_memory_file, UnusualCode),
        mutations=_mutation("unusual_code", "path.startswith(_MEM", "path.endswith(_MEM"),
    ),
    Scenario(
        *("a program's file is replaced while it runs", "unusual-code", "T1070.004", _INSIDE),
        *(_replaced, UnusualCode),
        mutations=_mutation("unusual_code", "if not program.deleted:", "if program.deleted:"),
    ),
    Scenario(
        *("a process's executable is exchanged", "unusual-code", "T1055.012", _OUTSIDE),
        *(_hollow, UnusualCode),
        mutations=_mutation(
            "unusual_code", "one.inode) == _file(program) for", "one.inode) != _file(program) for"
        ),
    ),
    Scenario(
        *("a program makes memory writable and executable", "unusual-code", "T1055", _INSIDE),
        *(_writable, UnusualCode),
        mutations=_mutation(
            "anonymous_memory", "return not mapping.inode", "return mapping.inode > 0"
        ),
    ),
    Scenario(
        *("a tracer attaches to a process that it did not start", "injection", "T1055.008"),
        *(_INSIDE, _attached, _injection),
        mutations=_mutation(
            "injection",
            "Severity.LOW if started or known else Severity.HIGH",
            "Severity.HIGH if started or known else Severity.LOW",
        ),
    ),
    Scenario(
        *("a library is preloaded into a program", "injection", "T1574.006", _INSIDE),
        *(_preloaded, _injection),
        mutations=_mutation("injection", "if foreign:", "if not foreign:"),
    ),
    Scenario(
        *("every program is to preload a library", "injection", "T1574.006", _INSIDE),
        *(_preload_file, _injection),
        mutations=_mutation("injection", "(foreign or not data)", "(not foreign or not data)"),
    ),
    Scenario(
        *("a process opens another's memory to write it", "injection", "T1055.009", _INSIDE),
        *(_memory_open, _injection),
        mutations=_mutation("injection", '"w" not in file.access', '"w" in file.access'),
    ),
    Scenario(
        *("a program puts its name in brackets", "impostors", "T1036.005", _INSIDE),
        *(_in_brackets, Impostors),
        mutations=_mutation("impostors", "fullmatch(first)", "fullmatch(process.name)"),
    ),
    Scenario(
        *("a program bears a daemon's name", "impostors", "T1036.005", _INSIDE),
        *(_as_daemon, Impostors),
        mutations=_mutation(
            "impostors", "path and not program.path.starts", "path and program.path.starts"
        ),
    ),
    Scenario(
        *("a kernel thread gets another parent", "impostors", "T1014", _OUTSIDE),
        *(_adopted, Impostors),
        mutations=_mutation("impostors", "program.ppid not in {0", "program.ppid in {0"),
    ),
    Scenario(
        *("a program is flagged as a kernel thread", "impostors", "T1014", _OUTSIDE),
        *(_flagged, Impostors),
        mutations=_mutation(
            "impostors", "if program.memory is not None:", "if program.memory is None:"
        ),
    ),
)
