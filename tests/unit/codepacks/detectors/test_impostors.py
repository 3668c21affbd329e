"""Who looks like a kernel thread or a daemon, and who is one."""

import pytest

from qvmi.addr import Va
from qvmi.codepacks.codepack import Finding
from qvmi.codepacks.detectors.impostors import Impostors
from qvmi.semantics.guest_os import CommandLine, Gap, Process
from qvmi.testing import FakeGuest, FakeMemory, fake_process, fake_program

INIT = fake_process(1, name="init")
KTHREADD = fake_process(2, name="kthreadd", kernel_thread=True, ppid=0)
WORKER = fake_process(3, name="kworker/0:1", kernel_thread=True, ppid=2)


def inspect(process: Process, *arguments: str, **program: object) -> list[Finding]:
    rows = [INIT, KTHREADD, WORKER, process]
    guest = FakeGuest(
        processes=rows,
        programs=[
            fake_program(INIT, path="/init"),
            fake_program(KTHREADD),
            fake_program(WORKER),
            fake_program(process, **program),
        ],
        command_lines=[
            CommandLine(1, ("/init",), "init", INIT.address),
            CommandLine(process.pid, arguments, process.name, process.address),
        ],
    )
    return list(Impostors().inspect(guest, FakeMemory({})))


def named(name: str, **changes: object) -> Process:
    return fake_process(50, name=name, **{"ppid": 1, **changes})


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("kworker/u8:1", ("/run/x",), "is called like a kernel thread"),
        ("[kthreadd]", ("x",), "is called like a kernel thread"),
        ("ksoftirqd/0", ("x",), "is called like a kernel thread"),
        ("x", ("[kworker/0:0]",), "calls itself [kworker/0:0]"),
        ("x", ("[kworker/0:0]   ", ""), "calls itself [kworker/0:0]"),
        ("x", (), "has no arguments"),
        ("x", ("", ""), "has no arguments"),
    ],
)
def test_a_program_that_looks_like_a_kernel_thread_is_found(
    name: str, arguments: tuple[str, ...], words: str
) -> None:
    [finding] = inspect(named(name), *arguments)
    assert words in finding.claim


@pytest.mark.parametrize("name", ["worker", "kworkers", "my[x]", "[x", "kthreadd2", "kdevtmpfsd"])
def test_other_names_are_none(name: str) -> None:
    assert inspect(named(name), name) == []


def test_arguments_that_cannot_be_read_are_not_missing() -> None:
    process = named("x")
    guest = FakeGuest(processes=[process], programs=[fake_program(process)])
    empty = CommandLine(process.pid, (), "x", process.address)
    guest.show("command_lines", [empty], gaps=[Gap("mm_struct.arg_start", None, "torn")])
    assert list(Impostors().inspect(guest, FakeMemory({}))) == []


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/usr/sbin/sshd", False),
        ("/lib64/sshd", False),
        ("/home/user/sshd", True),
        ("/run/x", True),
    ],
)
def test_a_daemons_name_belongs_to_system_folders(path: str, *, found: bool) -> None:
    for process, argument in ((named("sshd"), "x"), (named("x"), "/usr/sbin/sshd")):
        findings = inspect(process, argument, path=path)
        assert [f"is called sshd, and runs {path}" in one.claim for one in findings] == [
            True
        ] * found


@pytest.mark.parametrize(
    ("changes", "program", "words"),
    [
        ({}, {}, None),
        ({}, {"memory": Va(4096)}, "has memory of a program's"),
        ({"ppid": 1}, {}, "a child of process 1"),
    ],
)
def test_a_kernel_thread_has_no_memory_and_one_parent(
    changes: dict[str, object], program: dict[str, object], words: str | None
) -> None:
    thread = fake_process(50, name="kblockd", **{"kernel_thread": True, "ppid": 2, **changes})
    findings = inspect(thread, **program)
    assert [words in one.claim for one in findings if words] == [True] * (words is not None)
    assert {one.settle_s for one in findings} <= {5.0}


@pytest.mark.parametrize(("path", "found"), [("/sbin/modprobe", False), ("/bin/nc", True)])
@pytest.mark.parametrize("parent", [2, 3])
def test_what_the_kernel_starts_is_known(path: str, parent: int, *, found: bool) -> None:
    findings = inspect(named("x", ppid=parent), "x", path=path)
    assert [finding.technique for finding in findings] == ["T1014"] * found
