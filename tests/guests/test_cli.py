"""Every command of ``qvmi`` on a real guest: in a pipe, on a terminal and as JSON."""

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.command_line import (
    DEADLINE_S,
    QVMI,
    environment,
    qvmi,
    qvmi_document,
    qvmi_on_terminal,
)
from tests.guests.bare_qemu import BareQemu, bare_qemu
from tests.guests.lab import Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool
from tests.guests.rootkit import hide_process, show_process
from tests.repository.tree import ROOT

LISTINGS: Final = ("ps", "tree", "threads", "modules")
EVERY_COMMAND: Final = (
    *((name,) for name in ("info", *LISTINGS, "regs", "find")),
    ("read", "linux_banner"),
    ("translate", "linux_banner"),
    ("symbol", "linux_banner"),
    ("watch", "--for", "1.5"),
    *((name,) for name in ("mounts", "files", "sockets", "maps", "cmdline", "log")),
    ("env", "1"),
    *((name,) for name in ("creds", "namespaces", "cgroups")),
)
COLOUR: Final = re.compile(rb"\x1b\[[0-9;]*m")
BANNER: Final = "linux_banner"


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(GuestConfig(kernel="6.1"))


@pytest.fixture(autouse=True)
def _a_cache_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def comm(name: bytes) -> str:
    """This is a name as ``task_struct.comm`` holds it; /proc knows longer ones of kernel threads."""
    return name[:15].decode("utf-8", "backslashreplace")


def shown(name: bytes) -> str:
    """This is how a name is to be seen, written down without the code that is tested."""
    text = comm(name)
    return (
        "".join(
            character if character.isprintable() else character.encode("unicode_escape").decode()
            for character in text
        )
        .replace("\\n", "\\x0a")
        .replace("\\t", "\\x09")
        .replace("\\r", "\\x0d")
    )


# ------------------------------------------------------------------------------ all commands alike


@pytest.mark.parametrize("command", EVERY_COMMAND, ids=" ".join)
def test_a_pipe_gets_printable_lines_and_nothing_on_stderr(
    guest: Guest, command: tuple[str, ...]
) -> None:
    done = qvmi("--qmp", guest.qmp, *command)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" or command[0] == "watch"
    assert done.stdout
    assert all(line.isprintable() for line in done.stdout.removesuffix("\n").split("\n"))


@pytest.mark.parametrize("command", EVERY_COMMAND, ids=" ".join)
def test_json_is_documents_and_nothing_else(guest: Guest, command: tuple[str, ...]) -> None:
    done = qvmi(*command, "--qmp", guest.qmp, "--json")
    assert done.returncode == 0, done.stderr
    documents = [json.loads(line) for line in done.stdout.splitlines()]
    assert documents
    assert len(documents) == 1 or command[0] == "watch"
    assert done.stdout.isascii()


@pytest.mark.parametrize("command", EVERY_COMMAND, ids=" ".join)
def test_a_terminal_is_sent_no_control_but_colours(guest: Guest, command: tuple[str, ...]) -> None:
    with qvmi_on_terminal("--qmp", guest.qmp, *command) as terminal:
        assert terminal.end() == 0
    plain = COLOUR.sub(b"", terminal.screen).decode()
    assert plain
    assert all(line.isprintable() for line in plain.split("\r\n"))


@pytest.mark.parametrize("command", ["ps", "threads", "tree"])
def test_a_hostile_name_colours_nothing_and_is_seen_whole(guest: Guest, command: str) -> None:
    tasks = guest.settled_truth().tasks
    with qvmi_on_terminal("--qmp", guest.qmp, command) as terminal:
        assert terminal.end() == 0
    # Titles are bold, and nothing else has any style.
    assert set(COLOUR.findall(terminal.screen)) <= {b"\x1b[1m", b"\x1b[0m"}
    seen = COLOUR.sub(b"", terminal.screen).decode()
    names = {task.name for task in tasks if task.leads or command == "threads"}
    hostile = {name for name in names if not name.isascii() or not name.decode().isprintable()}
    assert len(hostile) > 5
    assert [name for name in names if shown(name) not in seen] == []


@pytest.mark.parametrize("command", LISTINGS)
def test_the_machine_can_be_named_by_the_environment(guest: Guest, command: str) -> None:
    assert qvmi(command, QVMI_QMP=guest.qmp).returncode == 0


def test_head_ends_it_quietly(guest: Guest) -> None:
    line = '"$0" "$@" | head -n 1; echo "${PIPESTATUS[0]}"'
    for _ in range(3):
        done = subprocess.run(
            ["bash", "-c", line, *QVMI, "--qmp", guest.qmp, "read", BANNER, "4M"],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=True,
        )
        assert done.stderr == ""
        assert done.stdout.splitlines()[1] == "141"


# ----------------------------------------------------------------------------- what each one tells


def test_ps_tells_what_proc_tells(guest: Guest) -> None:
    before = guest.settled_truth()
    items = qvmi_document("--qmp", guest.qmp, "ps")["items"]
    lasting = before.unchanged_until(guest.truth())
    expected = {
        task.pid: {
            "pid": task.pid,
            "tgid": task.tgid,
            "ppid": task.ppid,
            "uid": task.uid,
            "gid": task.gid,
            "name": comm(task.name),
            "kernel_thread": task.kernel_thread,
        }
        for task, _ in lasting.values()
        if task.leads
    }
    found = {item["pid"]: {name: item[name] for name in expected[1]} for item in items}
    assert {pid: found.get(pid) for pid in expected} == expected


def test_threads_are_those_of_proc(guest: Guest) -> None:
    before = guest.settled_truth()
    items = qvmi_document("--qmp", guest.qmp, "threads")["items"]
    lasting = before.unchanged_until(guest.truth())
    expected = {(task.pid, task.tgid) for task, _ in lasting.values()}
    assert expected - {(item["pid"], item["tgid"]) for item in items} == set()


def test_modules_are_those_of_proc(guest: Guest) -> None:
    items = qvmi_document("--qmp", guest.qmp, "modules")["items"]
    assert [(item["name"], item["address"], item["size"]) for item in items] == [
        (module.name, module.address, module.size) for module in guest.truth().modules
    ]


def test_the_tree_has_each_child_one_deeper_than_its_parent(guest: Guest) -> None:
    items = qvmi_document("--qmp", guest.qmp, "tree")["items"]
    depths = {item["pid"]: item["depth"] for item in items}
    assert depths[1] == 0
    assert all(
        item["depth"] == depths[item["ppid"]] + 1 for item in items if item["ppid"] in depths
    )
    chain = [item["depth"] for item in items if item["name"].startswith("tree-")]
    assert chain == [1, 2, 3, 4]


def test_info_tells_the_kernel_and_how_it_is_read(guest: Guest) -> None:
    document = qvmi_document("--qmp", guest.qmp, "info")
    truth = guest.truth()
    assert document["guest"]["release"] == truth.release
    assert document["guest"]["banner"] == truth.version
    assert abs(document["guest"]["uptime_s"] - truth.uptime) < DEADLINE_S
    assert document["guest"]["evidence"]
    assert document["machine"]["vcpus"] == truth.cpus
    assert document["machine"]["ram_size"] == guest.config.memory_mib << 20
    assert document["machine"]["run_state"] == "running"
    assert [attempt["used"] for attempt in document["machine"]["memory"]] == [True]


def test_regs_tell_what_the_monitor_prints(guest: Guest) -> None:
    guest.monitor.execute("stop")
    try:
        items = qvmi_document("--qmp", guest.qmp, "regs")["items"]
        printed = guest.monitor.human("info registers -a")
    finally:
        guest.monitor.execute("cont")
    expected = [int(value, 16) for value in re.findall(r"CR3=([0-9a-f]+)", printed)]
    assert [item["cr3"] for item in items] == expected
    assert [item["index"] for item in items] == list(range(guest.config.cpus))


def test_regs_of_one_vcpu(guest: Guest) -> None:
    (item,) = qvmi_document("--qmp", guest.qmp, "regs", "--vcpu", "1")["items"]
    assert item["index"] == 1


def test_regs_of_a_vcpu_that_is_not_there_is_wrong_usage(guest: Guest) -> None:
    done = qvmi("--qmp", guest.qmp, "regs", "--vcpu", "7")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "qvmi: there is no vCPU 7; this machine has 0, 1\n"


def test_a_symbol_is_where_the_guest_says(guest: Guest) -> None:
    addresses = guest.kallsyms().addresses
    for name in ("init_task", "linux_banner", "_text"):
        address = addresses[name]
        found = qvmi_document("--qmp", guest.qmp, "symbol", name)
        assert (found["name"], found["address"]) == (name, address)


def test_an_address_has_the_symbol_the_guest_says(guest: Guest) -> None:
    address = guest.kallsyms().addresses["init_task"]
    done = qvmi("--qmp", guest.qmp, "symbol", f"{address + 8:x}")
    assert done.stdout == f"{address + 8:#x} D init_task+0x8\n"


def test_a_symbol_that_is_not_there_is_4(guest: Guest) -> None:
    done = qvmi("--qmp", guest.qmp, "symbol", "no_such_symbol")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == "qvmi: no symbol 'no_such_symbol' in this kernel\n"


# --------------------------------------------------------------------------------- single addresses


def raw(*arguments: str) -> bytes:
    return subprocess.run(
        (*QVMI, *arguments, "--raw"),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        timeout=DEADLINE_S,
        check=True,
    ).stdout


def test_raw_bytes_are_those_of_the_guest(guest: Guest) -> None:
    banner = guest.truth().version.encode()
    assert raw("--qmp", guest.qmp, "read", BANNER, str(len(banner))) == banner


def test_physical_bytes_are_those_of_the_ram_file(guest: Guest) -> None:
    found = qvmi_document("--qmp", guest.qmp, "translate", BANNER)
    start = found["pa"] & ~0xFFF
    size = 3 << 20
    (path,) = guest.ram_paths
    guest.monitor.execute("stop")
    try:
        expected = os.pread(os.open(path, os.O_RDONLY), size, start)
        assert raw("--qmp", guest.qmp, "read", "--physical", f"{start:#x}", "3M") == expected
    finally:
        guest.monitor.execute("cont")


def test_all_forms_of_reading_tell_the_same(guest: Guest) -> None:
    banner = guest.truth().version.encode()[:40]
    where = ("--qmp", guest.qmp, "read", BANNER, str(len(banner)))
    assert qvmi(*where, "--hex").stdout == banner.hex() + "\n"
    assert qvmi_document(*where)["data"] == banner.hex()
    dump = qvmi(*where).stdout
    assert "".join(re.findall(r"\|(.*)\|", dump)).encode() == banner


def test_a_process_s_memory_is_read_by_its_own_page_tables(guest: Guest) -> None:
    maps = guest.run("cat /proc/1/maps").decode()
    (start, _) = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) r", maps, re.MULTILINE)[0]
    found = qvmi_document("--qmp", guest.qmp, "read", "--user", "1", f"0x{start}", "4")
    assert bytes.fromhex(found["data"]) == b"\x7fELF"


def test_a_pid_that_is_not_there_is_4(guest: Guest) -> None:
    done = qvmi("--qmp", guest.qmp, "read", "--user", "31999", "0x400000")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == "qvmi: no process of this guest has the pid 31999\n"


def test_a_kernel_thread_has_no_memory_of_its_own(guest: Guest) -> None:
    done = qvmi("--qmp", guest.qmp, "translate", "--pid", "2", "0x400000")
    assert (done.returncode, done.stdout) == (4, "")
    assert "no memory of its own" in done.stderr


def test_raw_bytes_are_kept_from_a_terminal(guest: Guest) -> None:
    with qvmi_on_terminal("--qmp", guest.qmp, "read", BANNER, "--raw") as terminal:
        assert terminal.end() == 2
    assert b"raw bytes would disturb the terminal" in terminal.screen


@pytest.mark.parametrize(
    "arguments",
    [
        ("--physical", BANNER),
        (BANNER, "8", "--raw", "--json"),
        (BANNER, "8", "--hex", "--json"),
        (BANNER, "1G", "--json"),
        ("0xfffffffffffffff0", "17"),
    ],
    ids=" ".join,
)
def test_what_contradicts_itself_is_wrong_usage(guest: Guest, arguments: tuple[str, ...]) -> None:
    done = qvmi("--qmp", guest.qmp, "read", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


def test_a_walk_leads_where_qemu_s_own_does(guest: Guest) -> None:
    guest.monitor.execute("stop")
    try:
        found = qvmi_document("--qmp", guest.qmp, "translate", BANNER)
        printed = guest.monitor.human(f"gva2gpa {found['va']:#x}")
    finally:
        guest.monitor.execute("cont")
    assert printed.strip() == f"gpa: {found['pa']:#x}"
    assert [step["level"] for step in found["steps"]][-1] == "PDE"
    assert found["permissions"] == {"writable": False, "user": False, "executable": False}


def test_an_address_that_is_not_mapped_is_4_and_says_at_which_level(guest: Guest) -> None:
    done = qvmi("--qmp", guest.qmp, "translate", "0x10000", "--pid", "1")
    assert done.returncode == 4
    assert done.stderr.startswith("qvmi: cannot translate virtual address 0x10000: ")
    stopped = re.search(r"(P[A-Z0-9]+E) not present \(entry (0x\w+) at (0x\w+)\)", done.stderr)
    assert stopped
    level, entry, place = stopped.groups()
    titles, *way = [line.split() for line in done.stdout.splitlines()]
    assert titles == ["LEVEL", "AT", "ENTRY", "ALLOWS"]
    levels = [one[0] for one in way]
    assert " PML5E PML4E PDPTE PDE PTE ".count(f" {' '.join(levels)} ") == 1
    assert way[-1][:2] == [level, place]
    assert int(way[-1][2], 16) == int(entry, 16)
    assert way[-1][3:] == ["nothing:", "not", "present"]


def test_the_way_to_an_address_that_is_not_mapped_is_a_document(guest: Guest) -> None:
    done = qvmi("--json", "--qmp", guest.qmp, "translate", "0x10000", "--pid", "1")
    assert done.returncode == 4
    document = json.loads(done.stdout)
    assert {name: document[name] for name in ("va", "pa", "page_size", "permissions", "pid")} == {
        **dict.fromkeys(("pa", "page_size", "permissions")),
        "va": 0x10000,
        "pid": 1,
    }
    assert document["steps"][0]["level"] in {"PML5E", "PML4E"}
    assert all(step["entry"] & 1 for step in document["steps"][:-1])
    assert not document["steps"][-1]["entry"] & 1
    assert done.stderr == f"qvmi: {document['problem']}\n"


def test_an_address_that_is_not_canonical_is_4(guest: Guest) -> None:
    done = qvmi("--qmp", guest.qmp, "read", "0x8000000000000000")
    assert (done.returncode, done.stdout) == (4, "")
    assert "not canonical" in done.stderr


# -------------------------------------------------------------------------------------- symbol files


@pytest.mark.parametrize("name", ["guest.json", "guest.json.xz"])
def test_a_symbol_file_that_was_written_can_be_used(
    guest: Guest, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    written = qvmi_document("--qmp", guest.qmp, "isf", "-o", str(path))
    assert written == {"path": str(path), "size": path.stat().st_size}
    own = qvmi_document("--qmp", guest.qmp, "modules")["items"]
    assert own
    assert qvmi_document("--qmp", guest.qmp, "modules", "--isf", str(path))["items"] == own


def test_a_symbol_file_that_cannot_be_written_is_wrong_usage(guest: Guest) -> None:
    done = qvmi("--qmp", guest.qmp, "isf", "-o", "/nonexistent/guest.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "/nonexistent/guest.json" in done.stderr


# --------------------------------------------------------------------------------------- the cache


def test_a_cache_that_cannot_be_written_is_told_with_the_way_out(
    guest: Guest, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    wrong = {"XDG_CACHE_HOME": str(tmp_path / "file")}
    done = qvmi("--qmp", guest.qmp, "ps", **wrong)
    assert done.returncode == 0
    assert "is not kept" in done.stderr
    assert "--no-cache" in done.stderr
    assert qvmi("--qmp", guest.qmp, "--no-cache", "ps", **wrong).stderr == ""


# ------------------------------------------------------------------------------- machines and states


@pytest.mark.parametrize("command", LISTINGS)
def test_an_exact_list_tells_for_how_long_the_guest_stood_still(guest: Guest, command: str) -> None:
    done = qvmi("--qmp", guest.qmp, command, "--exact")
    assert done.returncode == 0
    assert re.fullmatch(r"qvmi: the guest stood still for \d+\.\d ms\n", done.stderr)
    document = qvmi_document("--qmp", guest.qmp, command, "--exact")
    assert document["provenance"]["taken"] == "captured"
    assert 0 < document["provenance"]["pause_s"] < DEADLINE_S
    assert document["items"]
    assert guest.monitor.running()


def test_a_dump_is_a_core_file_and_tells_for_how_long_the_guest_stood_still(
    guest: Guest, tmp_path: Path
) -> None:
    path = tmp_path / "core"
    done = qvmi("--qmp", guest.qmp, "dump", str(path))
    assert done.returncode == 0
    assert re.fullmatch(r"qvmi: the guest stood still for \d+\.\d ms\n", done.stderr)
    assert path.read_bytes()[:4] == b"\x7fELF"
    document = qvmi_document("--qmp", guest.qmp, "dump", str(path), "--live")
    assert document["size"] == path.stat().st_size
    assert document["provenance"]["taken"] == "live"
    assert guest.monitor.running()


def test_a_machine_without_a_system_can_be_dumped(firmware: Guest, tmp_path: Path) -> None:
    done = qvmi("--qmp", firmware.qmp, "dump", str(tmp_path / "core"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "core").stat().st_size > firmware.config.memory_mib << 20


def test_find_tells_how_to_attach(guest: Guest) -> None:
    items = qvmi_document("find")["items"]
    (item,) = (item for item in items if item["pid"] == guest.pid)
    assert item["address"] == guest.qmp
    assert item["advice"] == f"--qmp {guest.qmp}"


def test_a_socket_that_another_client_holds_is_3_and_find_says_so(guest: Guest) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(guest.qmp)
        assert other.recv(1 << 16)
        done = qvmi("--qmp", guest.qmp, "--timeout", "0.5", "ps")
        items = qvmi_document("find")["items"]
    assert (done.returncode, done.stdout) == (3, "")
    assert "another client" in done.stderr or f"pid {os.getpid()}" in done.stderr
    (item,) = (item for item in items if item["pid"] == guest.pid)
    assert item["sockets"][0]["state"] == "busy"


def test_a_guest_that_its_owner_paused_is_listed_and_stays_paused(guest: Guest) -> None:
    guest.monitor.execute("stop")
    try:
        assert qvmi("--qmp", guest.qmp, "ps").returncode == 0
        assert qvmi_document("--qmp", guest.qmp, "info")["machine"]["run_state"] == "paused"
        assert not guest.monitor.running()
    finally:
        guest.monitor.execute("cont")


def test_a_running_guest_runs_on(guest: Guest) -> None:
    for command in (*LISTINGS, "info", "regs"):
        assert qvmi("--qmp", guest.qmp, command).returncode == 0
        assert guest.monitor.running()


@pytest.fixture(scope="module")
def firmware(lab: Lab) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).boot(GuestConfig(kernel=None), until="started")


@pytest.mark.parametrize("command", [*LISTINGS, "info"])
def test_firmware_alone_is_4_and_says_why(firmware: Guest, command: str) -> None:
    done = qvmi("--qmp", firmware.qmp, command)
    assert done.returncode == 4
    assert done.stderr.startswith("qvmi: ")
    assert "Traceback" not in done.stderr


def test_info_of_firmware_alone_tells_of_the_machine(firmware: Guest) -> None:
    done = qvmi("--qmp", firmware.qmp, "info")
    assert "not recognised" in done.stdout
    assert str(firmware.config.memory_mib) in done.stdout
    document = json.loads(qvmi("--qmp", firmware.qmp, "info", "--json").stdout)
    assert document["guest"] is None
    assert document["problem"]
    assert document["machine"]["vcpus"] == firmware.config.cpus


def test_firmware_alone_has_registers_and_physical_memory(firmware: Guest) -> None:
    items = qvmi_document("--qmp", firmware.qmp, "regs")["items"]
    assert len(items) == firmware.config.cpus
    # The reset vector's page lies in the BIOS image, a copy of which QEMU keeps below 1 MiB.
    found = qvmi_document("--qmp", firmware.qmp, "read", "--physical", "0xffff0", "1")
    assert found["data"] == "ea"  # a far jump


# -------------------------------------------------------------------------------------------- Ctrl-C


@pytest.fixture(scope="module")
def bare() -> Iterator[BareQemu]:
    with bare_qemu() as qemu:
        yield qemu


@pytest.mark.parametrize(
    ("command", "seen", "ends"),
    [
        (("regs",), b"halted", {0, 130}),
        (("info",), b"no Linux kernel found", {4, 130}),
        (("watch",), b"sight blind", {4, 130}),
    ],
    ids=lambda value: value.decode() if isinstance(value, bytes) else None,
)
def test_ctrl_c_at_any_moment_leaves_no_complaint(
    bare: BareQemu, command: tuple[str, ...], seen: bytes, ends: set[int]
) -> None:
    """A second one, or one in the last moments, is the kernel's, which ends it by the signal."""
    for number in range(20):
        with qvmi_on_terminal("--qmp", bare.qmp, "--no-cache", *command) as terminal:
            terminal.wait_for(seen)
            for _ in range(1 + number % 3):  # those who cannot wait type it again
                terminal.type(b"\x03")
            assert terminal.end() in {*ends, -signal.SIGINT}
        for complaint in (b"never retrieved", b"Traceback", b"asyncio", b"Error", b"bug"):
            assert complaint not in terminal.screen, terminal.screen.decode()


# --------------------------------------------------------------------------------------------- watch


def test_watch_shows_a_hidden_process_and_ctrl_c_ends_it_with_1(guest: Guest) -> None:
    hidden = hide_process(guest, "orphan")
    try:
        arguments = ("--qmp", guest.qmp, "watch", "--interval", "0.1")
        with qvmi_on_terminal(*arguments, columns=200) as terminal:
            terminal.wait_for(b" alert ")
            terminal.wait_for(b"init_task.tasks: absent")
            terminal.type(b"\x03")
            assert terminal.end() == 1
    finally:
        show_process(guest, hidden)
    assert f"process {hidden.pid} (orphan)".encode() in terminal.screen


def test_watch_of_a_clean_guest_ends_with_0(guest: Guest) -> None:
    with qvmi_on_terminal("--qmp", guest.qmp, "watch", "--interval", "0.1") as terminal:
        terminal.wait_for(b"sight full")
        terminal.type(b"\x03")
        assert terminal.end() == 0


def test_watch_prints_documents_while_it_watches(guest: Guest) -> None:
    arguments = (*QVMI, "--qmp", guest.qmp, "watch", "--json", "--interval", "0.1")
    with subprocess.Popen(
        arguments, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        document = json.loads(process.stdout.readline())
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
    assert (document["kind"], document["codepack"]) == ("status", "hidden-processes")


def test_watch_of_a_machine_that_ends_is_3(guests: GuestPool) -> None:
    doomed = guests.restore(GuestConfig(kernel="6.1"))
    with qvmi_on_terminal("--qmp", doomed.qmp, "watch", "--interval", "0.1") as terminal:
        terminal.wait_for(b"sight full")
        doomed.kill()
        assert terminal.end() == 3
    assert b"sight ended: QEMU is gone" in terminal.screen
    assert b"qvmi.errors" not in terminal.screen
    assert b"Traceback" not in terminal.screen
