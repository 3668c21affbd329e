"""The lab's guests are what they claim to be, and what they say of themselves can be relied upon."""

import re
import time

import pytest

from tests.guests.lab import Guest, GuestRefused, Truth

HOSTILE_NAMES = (
    b"a (b)[c] d) S 1",
    b"\x1b[31mred\x1b[0m",
    b"\x1b]0;title\x07\x1b[2J",
    b"[bold red]x[/]",
    b"<b>&amp;<script",
    b"\xff\xfe\x80caf\xe9",
    b"line1\nline2",
    b"",
)
LISTENING = "0A"  # TCP_LISTEN, column st of /proc/net/tcp
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def truth(guest: Guest) -> Truth:
    return guest.settled_truth()


def test_runs_the_kernel_it_was_asked_for(guest: Guest, truth: Truth) -> None:
    series = guest.config.kernel
    assert series is not None
    assert truth.release.startswith(series.removesuffix("x"))
    assert truth.release.encode() in guest.run("cat /proc/version")


def test_says_the_same_twice(guest: Guest, truth: Truth) -> None:
    again = guest.settled_truth()
    lasting = truth.unchanged_until(again).values()
    assert [task for task in truth.tasks if not task.kernel_thread] == [
        later for earlier, later in lasting if not earlier.kernel_thread
    ]
    unchanging = ("/proc/modules", "/proc/mounts", "/proc/net/tcp", "/proc/net/unix", "/proc/iomem")
    assert [truth.lines[path] for path in unchanging] == [again.lines[path] for path in unchanging]


def test_everyone_but_the_reporter_rests(truth: Truth) -> None:
    running = [task.pid for task in truth.tasks if task.state == "R" and not task.kernel_thread]
    assert running == [truth.reporter]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_keeps_hostile_names_byte_for_byte(truth: Truth, name: bytes) -> None:
    assert truth.named(name).name == name


def test_keeps_hostile_arguments_byte_for_byte(truth: Truth) -> None:
    arguments = truth.named("hostile-args").command_line.split(b"\0")
    assert arguments[1:6] == [
        b"\x1b[31mred\x1b[0m",
        b"[bold red]x[/]",
        b"<script>alert(1)</script>",
        b"\xff\xfe",
        b"two\nlines",
    ]


def test_has_threads_with_names_of_their_own(truth: Truth) -> None:
    process = truth.named("threads")
    names = {task.name for task in truth.tasks if task.tgid == process.pid and not task.leads}
    assert names == {b"\x1b[1mthr[/]", *(b"thr-%d" % number for number in range(1, 8))}


@pytest.mark.parametrize(
    ("name", "uid", "euid", "gid", "egid"),
    [
        ("user-1000", 1000, 1000, 1000, 1000),
        ("nobody", 65534, 65534, 65534, 65534),
        ("large-ids", 4_000_000_000, 4_000_000_000, 3_000_000_001, 3_000_000_001),
        ("raised-uid", 1001, 0, 1002, 0),
        ("lowered-uid", 0, 1003, 0, 1004),
    ],
)
def test_has_processes_of_many_users(
    truth: Truth, name: str, uid: int, euid: int, gid: int, egid: int
) -> None:
    task = truth.named(name)
    assert (task.uid, task.euid, task.gid, task.egid) == (uid, euid, gid, egid)


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("zombie-child", "Z"),
        ("dead-leader", "Z"),
        ("stopped", "T"),
        ("traced", "t"),
        ("vfork-parent", "D"),
        ("sleep", "S"),
    ],
)
def test_has_a_process_in_every_state(truth: Truth, name: str, state: str) -> None:
    assert truth.named(name).state == state


def test_has_a_thread_that_outlives_its_leader(truth: Truth) -> None:
    leader = truth.named("dead-leader")
    (thread,) = (task for task in truth.tasks if task.tgid == leader.pid and not task.leads)
    assert (thread.name, thread.state) == (b"outlives-leader", "S")


def test_has_a_tree_four_deep(truth: Truth) -> None:
    pid, names = truth.reporter, []
    while children := [task for task in truth.children(pid) if task.name.startswith(b"tree-")]:
        names.append(children[0].name)
        pid = children[0].pid
    assert names == [b"tree-1", b"tree-2", b"tree-3", b"tree-4"]


def test_has_a_process_in_namespaces_of_its_own(truth: Truth) -> None:
    outside, inside = truth.named("sleep").namespaces, truth.named("ns-init").namespaces
    kinds = [name.partition(b":")[0] for name in outside]
    differing = {kind for kind, a, b in zip(kinds, outside, inside, strict=True) if a != b}
    assert differing == {b"pid", b"mnt", b"net", b"uts", b"ipc"}
    assert truth.named("ns-child").ppid == truth.named("ns-init").pid


@pytest.mark.parametrize("name", ["deleted-exe", "memfd-exe"])
def test_has_programs_whose_file_is_gone(truth: Truth, name: str) -> None:
    assert truth.named(name).executable.endswith(b" (deleted)")


def test_listens_on_known_ports(truth: Truth) -> None:
    rows = [line.split() for path in ("tcp", "tcp6") for line in truth.lines[f"/proc/net/{path}"]]
    ports = {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == LISTENING}
    assert ports >= {8080, 4444, 5001, 5002, 5005, 5006}


def test_has_loaded_at_least_five_modules(truth: Truth) -> None:
    assert len(truth.modules) >= 5
    assert {module.state for module in truth.modules} == {"Live"}
    assert all(module.address for module in truth.modules)


def test_log_and_mounts_carry_what_could_disturb_an_output(guest: Guest, truth: Truth) -> None:
    assert any("\x1b" in line or "\\033" in line for line in truth.lines["/proc/mounts"])
    assert b"\xff" in "".join(truth.lines["/proc/mounts"]).encode("latin-1")
    log = guest.run("dmesg -r | cat -v")
    assert b"[bold red]markup[/]" in log
    assert b"<script>" in log


def test_sums_up_kallsyms(guest: Guest, truth: Truth) -> None:
    kallsyms = guest.kallsyms()
    assert kallsyms.count > 50_000
    assert kallsyms.addresses["_stext"] > 0xFFFFFFFF80000000
    assert set(kallsyms.module_symbols) >= {m.name for m in truth.modules if m.name != "nfnetlink"}


def test_the_console_holds_the_report_of_the_boot(guest: Guest, truth: Truth) -> None:
    console = guest.wait_for_console(b'{"id":0,"kind":"end","ok":true}')
    assert b'"release":"' + truth.release.encode() + b'"' in console


def test_a_storm_is_accounted_for(guest: Guest) -> None:
    before = _forks(guest)
    guest.start_storm(8)
    deadline = time.monotonic() + DEADLINE_S
    while _forks(guest) < before + 50:
        assert time.monotonic() < deadline
    storm = guest.stop_storm()
    assert storm.count == len(storm.pids)
    assert all(storm.pids)
    with_second = {serial for serial in range(storm.count) if serial % 5 in {2, 4}}
    assert set(storm.seconds) == with_second
    assert storm.count + len(storm.seconds) <= _forks(guest) - before
    assert not [task for task in guest.truth().tasks if task.name.startswith(b"storm")]


def _forks(guest: Guest) -> int:
    """Count with the kernel's own counter of all tasks ever made."""
    found = re.search(rb"^processes (\d+)$", guest.run("cat /proc/stat"), re.MULTILINE)
    assert found
    return int(found[1])


def test_spinning_keeps_every_vcpu_in_user_mode(guest: Guest) -> None:
    guest.start_spinning()
    deadline = time.monotonic() + DEADLINE_S
    while guest.monitor.human("info registers -a").count("CPL=3") < guest.config.cpus:
        assert time.monotonic() < deadline
    guest.stop_spinning()
    assert not [task for task in guest.truth().tasks if task.name.startswith(b"spin")]


def test_modules_come_and_go_when_asked(guest: Guest) -> None:
    guest.ask("load ifb")
    assert "ifb" in {module.name for module in guest.truth().modules}
    guest.ask("unload ifb")
    assert "ifb" not in {module.name for module in guest.truth().modules}


def test_refuses_what_it_does_not_know(guest: Guest) -> None:
    with pytest.raises(GuestRefused, match="no such command"):
        guest.ask("dance")
