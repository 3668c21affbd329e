"""Preloaded libraries, tracers and descriptors of memory, as a guest's rows tell them."""

import pytest

from qvmi.addr import Va
from qvmi.codepacks.codepack import Finding, Unseen
from qvmi.codepacks.detectors.injection import Injection
from qvmi.semantics.guest_os import OpenFile, Variable
from qvmi.testing import FakeGuest, FakeMemory, fake_cached_file, fake_process, fake_program

WEB, OTHER = fake_process(80, name="web"), fake_process(90, name="other")
PROCESSES = [WEB, OTHER]


def inspect(guest: FakeGuest, **options: object) -> list[Finding]:
    given = Injection(**options).inspect(guest, FakeMemory({}))  # type: ignore[arg-type]  # options of one test
    return [one for one in given if isinstance(one, Finding)]


def test_files_of_libraries_that_are_too_many_are_not_passed_over_in_silence() -> None:
    files = [fake_cached_file(f"/{number}/etc/ld.so.preload") for number in range(4097)]
    [unseen] = Injection().inspect(FakeGuest(cached_files=files), FakeMemory({}))
    assert unseen == Unseen(what="page cache", reason="1 of such files more than are looked at")


def environments(*variables: Variable) -> FakeGuest:
    return FakeGuest(processes=PROCESSES, environment=variables)


def test_one_finding_tells_of_all_that_were_started_with_a_library() -> None:
    guest = environments(*(Variable(one.pid, "LD_PRELOAD", "/usr/lib/x.so") for one in PROCESSES))
    [finding] = inspect(guest)
    assert (finding.severity, finding.technique) == ("medium", "T1574.006")
    assert finding.claim == (
        "process 80 (web), and 1 more, were started with LD_PRELOAD=/usr/lib/x.so"
    )
    assert [one.address for one in finding.evidence] == [WEB.address, OTHER.address]


@pytest.mark.parametrize(
    ("name", "value", "severity"),
    [
        ("LD_PRELOAD", "/run/x.so", "high"),
        ("LD_PRELOAD", "/usr/lib/.x.so", "high"),
        ("LD_PRELOAD", "libjemalloc.so.2:/home/user/x.so", "high"),
        ("LD_AUDIT", "/usr/lib/x.so", "high"),
        ("LD_PRELOAD", "", None),
        ("LD_PRELOAD", "libjemalloc.so.2", None),
        ("LD_PRELOAD", "/usr/lib/libjemalloc.so.2 /opt/own.so", None),
        ("PATH", "/usr/bin", None),
    ],
)
def test_what_may_be_preloaded_is_told_in_the_baseline(
    name: str, value: str, severity: str | None
) -> None:
    allowed = ("libjemalloc.so.2", "/opt/own.so")
    findings = inspect(environments(Variable(80, name, value)), libraries=allowed)
    assert [finding.severity for finding in findings] == ([severity] if severity else [])


def test_a_key_is_short_however_long_a_value_is() -> None:
    [finding] = inspect(environments(Variable(80, "LD_PRELOAD", "/x" * 100_000)))
    assert len(finding.claim) < 1000


@pytest.mark.parametrize(
    ("content", "found"),
    [(b"/lib/x.so\n", True), (b"# nothing\n", False), (b"libok.so", False), (b"", False)],
)
def test_a_file_of_libraries_for_all_is_found(content: bytes, *, found: bool) -> None:
    path = "/srv/box/etc/ld.so.preload"
    guest = FakeGuest(
        cached_files=[
            fake_cached_file(path, size=len(content)),
            fake_cached_file("/etc/passwd", size=9),
        ],
        contents={path: content},
    )
    findings = inspect(guest, libraries=("libok.so",))
    assert [one.claim for one in findings] == [f"{path} has every program load /lib/x.so"] * found


def test_a_file_of_libraries_whose_content_is_not_in_memory_is_found_all_the_same() -> None:
    guest = FakeGuest(cached_files=[fake_cached_file("/etc/ld.so.preload", size=9)])
    assert len(inspect(guest)) == 1


@pytest.mark.parametrize(
    ("tracer", "parent", "severity"),
    [
        ("/usr/bin/gdb", 90, None),
        ("/usr/bin/gdb", 1, "low"),
        ("/usr/bin/evil", 90, "low"),
        ("/usr/bin/evil", 1, "high"),
    ],
)
def test_a_tracer_is_told_by_what_it_is_and_whether_it_started_whom_it_traces(
    tracer: str, parent: int, severity: str | None
) -> None:
    traced = fake_program(WEB, tracer=90, ppid=parent)
    guest = FakeGuest(processes=PROCESSES, programs=[traced, fake_program(OTHER, path=tracer)])
    findings = inspect(guest)
    assert [finding.severity for finding in findings] == ([severity] if severity else [])
    assert {finding.technique for finding in findings} <= {"T1055.008"}


@pytest.mark.parametrize(
    ("path", "access", "found"),
    [
        ("/proc/80/mem", "rw", True),
        ("/proc/80/task/80/mem", "w", True),
        ("/proc/80/mem", "r", False),
        ("/proc/90/mem", "rw", False),
        ("/proc/80/maps", "rw", False),
        ("/proc/" + "8" * 250 + "/mem", "rw", False),
    ],
)
def test_a_descriptor_of_anothers_memory_is_found(path: str, access: str, *, found: bool) -> None:
    file = OpenFile(90, 3, path, "file", access, 0, "0:20", 5, deleted=False, address=Va(77))
    guest = FakeGuest(processes=PROCESSES, open_files=[file])
    assert [one.technique for one in inspect(guest)] == ["T1055.009"] * found
