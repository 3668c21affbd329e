"""Code that comes from where a program's code does not come from."""

import msgspec
import pytest

from qvmi.addr import Va
from qvmi.codepacks.codepack import Finding
from qvmi.codepacks.detectors.unusual_code import UnusualCode
from qvmi.semantics.guest_os import Gap, MemoryMapping, Process, Program
from qvmi.testing import FakeGuest, FakeMemory, fake_process, fake_program

WEB = fake_process(80, name="web")
PROGRAM = fake_program(WEB, path="/usr/bin/web", inode=7, device="8:1")
PLACE = 0x5555_0000_0000


def mapping(permissions: str = "r-xp", **changes: object) -> MemoryMapping:
    row = MemoryMapping(
        pid=WEB.pid,
        start=Va(PLACE),
        end=Va(PLACE + 4096),
        permissions=permissions,
        offset=0,
        device="8:1",
        inode=7,
        name="/usr/bin/web",
        deleted=False,
        address=Va(0xFFFF_8888_0000_0000),
    )
    return msgspec.structs.replace(row, **changes)


TEXT = mapping()


def inspect(
    *mappings: MemoryMapping, program: Program = PROGRAM, process: Process = WEB
) -> list[Finding]:
    guest = FakeGuest(processes=[process], programs=[program], mappings=mappings)
    return list(UnusualCode().inspect(guest, FakeMemory({})))


def anonymous(permissions: str, name: str = "") -> MemoryMapping:
    return mapping(permissions, device="", inode=0, name=name)


def test_a_program_that_runs_its_file_is_none() -> None:
    assert inspect(TEXT, mapping("rw-p"), anonymous("rw-p", "[heap]")) == []


@pytest.mark.parametrize("name", ["[vdso]", "[uprobes]", "[vectors]"])
def test_what_the_kernel_puts_there_itself_is_none(name: str) -> None:
    assert inspect(TEXT, anonymous("r-xp", name)) == []


@pytest.mark.parametrize(
    ("row", "severity", "what"),
    [
        (anonymous("r-xp"), "medium", "code that is in no file"),
        (anonymous("rwxp"), "high", "code that is in no file"),
        (anonymous("rwxp", "[stack]"), "high", "code that is in no file"),
        (anonymous("r-xp", "[anon:jit]"), "medium", "code that is in no file"),
        (mapping("rwxp"), "high", "may write the code"),
        (mapping(deleted=True, inode=9, name="/lib/x.so"), "low", "files that are deleted"),
        (mapping(deleted=True, inode=9, name="/memfd:x"), "high", "files that are deleted"),
    ],
)
def test_finds_code_that_is_not_a_files(row: MemoryMapping, severity: str, what: str) -> None:
    [finding] = inspect(TEXT, row)
    assert (finding.severity, finding.technique) == (severity, "T1055")
    assert f"process 80 (web) {'runs' if 'may' not in what else ''}".strip() in finding.claim
    assert what in finding.claim
    [seen] = finding.evidence
    assert (seen.address, seen.facts["start"]) == (row.address, PLACE)
    assert seen.facts["permissions"] == row.permissions


def test_one_finding_tells_of_all_mappings_of_a_kind() -> None:
    [finding] = inspect(TEXT, *[anonymous("rwxp")] * 1000)
    assert "1000 mappings" in finding.claim
    assert len(finding.evidence) == 16


def test_a_program_that_makes_code_may() -> None:
    java = msgspec.structs.replace(PROGRAM, path="/usr/lib/jvm/bin/java")
    assert inspect(TEXT, anonymous("rwxp"), program=java) == []
    pack = UnusualCode(jits=["web"])
    guest = FakeGuest(processes=[WEB], programs=[PROGRAM], mappings=[TEXT, anonymous("rwxp")])
    assert list(pack.inspect(guest, FakeMemory({}))) == []


@pytest.mark.parametrize(
    ("path", "severity", "technique"),
    [("/memfd:x", "high", "T1620"), ("/run/x", "medium", "T1070.004")],
)
def test_finds_an_executable_that_is_no_file(path: str, severity: str, technique: str) -> None:
    program = msgspec.structs.replace(PROGRAM, path=path, deleted=True)
    [finding] = inspect(mapping(name=path, deleted=True), program=program)
    assert (finding.severity, finding.technique) == (severity, technique)
    assert finding.evidence[0].facts["path"] == path


def test_a_process_without_its_own_code_is_hollow() -> None:
    [finding] = inspect(mapping(inode=8, name="/run/other"))
    assert (finding.severity, finding.technique) == ("high", "T1055.012")
    assert [one.present for one in finding.evidence] == [True, False, True]


def test_what_is_behind_a_gap_is_not_called_hollow() -> None:
    guest = FakeGuest(processes=[WEB], programs=[PROGRAM])
    guest.show("mappings", [], gaps=[Gap("mm_struct.mm_mt", None, "torn")])
    assert list(UnusualCode().inspect(guest, FakeMemory({}))) == []


def test_kernel_threads_and_the_dead_have_no_code() -> None:
    for memory in (None,):
        dead = msgspec.structs.replace(PROGRAM, memory=memory, inode=0, path="")
        assert inspect(program=dead) == []


def test_another_process_of_the_same_pid_is_another() -> None:
    other = msgspec.structs.replace(WEB, address=Va(WEB.address + 64))
    assert inspect(anonymous("rwxp"), process=other) == []
