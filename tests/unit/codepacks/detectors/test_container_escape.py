"""What a process in a container's cgroup shares with the host."""

import msgspec
import pytest

from qvmi.addr import Va
from qvmi.codepacks.codepack import Finding, Unseen
from qvmi.codepacks.detectors.container_escape import ContainerEscape
from qvmi.semantics.guest_os import (
    CapabilitySet,
    Cgroup,
    CgroupHierarchy,
    Mount,
    Namespaces,
    OpenFile,
    Process,
)
from qvmi.testing import FakeGuest, FakeMemory, fake_credentials, fake_mount, fake_process

INIT, WEB, SHELL = fake_process(1, name="init"), fake_process(80, name="web"), fake_process(9)
HOST, OWN = 4026531841, 4026532000
NONE = CapabilitySet(0, ())


def spaces(process: Process, number: int, **changes: int) -> Namespaces:
    row = Namespaces(
        pid=process.pid,
        name=process.name,
        inner_pid=process.pid,
        mnt=number,
        pid_ns=number,
        net=number,
        uts=number,
        ipc=number,
        user=4026531837,
        cgroup=number,
        time=number,
        hostname="host",
        address=process.address,
    )
    return msgspec.structs.replace(row, **changes)


def cgroup(runtime: str) -> Cgroup:
    return Cgroup(80, "web", 0, "", "/docker/x", False, runtime, "c0ffee", "", Va(7))  # noqa: FBT003 - a row's field


def inspect(
    *,
    own: Namespaces | None = None,
    mounts: tuple[Mount, ...] = (),
    files: tuple[OpenFile, ...] = (),
    capabilities: CapabilitySet = NONE,
    inside: bool = True,
    hierarchies: tuple[CgroupHierarchy, ...] = (),
    **options: object,
) -> list[Finding]:
    runtime = "docker" if inside else ""
    guest = FakeGuest(
        processes=[INIT, WEB, SHELL],
        cgroups=[cgroup(runtime)],
        namespaces=[spaces(INIT, HOST), own or spaces(WEB, OWN), spaces(SHELL, HOST)],
        credentials=[fake_credentials(INIT), fake_credentials(WEB, effective=capabilities)],
        mounts=[*mounts, fake_mount("/", device="8:1", filesystem="ext4", namespace=HOST)],
        open_files=files,
        cgroup_hierarchies=hierarchies,
    )
    given = ContainerEscape(**options).inspect(guest, FakeMemory({}))  # type: ignore[arg-type]  # options of one test
    return [one for one in given if isinstance(one, Finding)]


@pytest.mark.parametrize(("runtime", "left_out"), [("docker", 1), ("", 0)])
def test_a_host_whose_first_process_is_off_the_task_list_is_not_passed_over_in_silence(
    runtime: str, left_out: int
) -> None:
    guest = FakeGuest(
        processes=[WEB],
        cgroups=[cgroup(runtime)],
        namespaces=[spaces(INIT, HOST), spaces(WEB, HOST)],
    )
    given = list(ContainerEscape().inspect(guest, FakeMemory({})))
    reason = "process 1 is not seen: there is no host to compare them with"
    assert given == [Unseen(what="processes of containers", reason=reason)] * left_out


def test_a_container_in_a_world_of_its_own_is_none() -> None:
    overlay = fake_mount("/", device="0:50", filesystem="overlay", namespace=OWN)
    hosts = fake_mount("/etc/hosts", device="8:1", root="/var/lib/docker/hosts", namespace=OWN)
    assert inspect(mounts=(overlay, hosts)) == []


@pytest.mark.parametrize(
    ("changes", "words", "severity"),
    [
        ({"mnt": HOST}, "is in the mount namespace of the host's first process", "high"),
        ({"pid_ns": HOST}, "is in the pid namespace of the host's first process", "medium"),
    ],
)
def test_the_hosts_namespaces_are_told(changes: dict[str, int], words: str, severity: str) -> None:
    [finding] = inspect(own=spaces(WEB, OWN, **changes))
    assert finding.claim == f"process 80 (web) of the docker container c0ffee {words}"
    assert (finding.severity, finding.technique, finding.settle_s) == (severity, "T1611", 5.0)
    assert [one.address for one in finding.evidence][1:] == [WEB.address, INIT.address]


def test_the_hosts_network_is_an_ordinary_choice() -> None:
    assert inspect(own=spaces(WEB, OWN, net=HOST, uts=HOST, ipc=HOST)) == []


def test_whoever_is_in_no_container_may_be_where_it_likes() -> None:
    assert inspect(own=spaces(WEB, HOST), inside=False) == []


@pytest.mark.parametrize(
    ("mount", "severity"),
    [
        (fake_mount("/host", device="8:1", root="/", namespace=OWN), "high"),
        (fake_mount("/run/x.sock", root="/docker.sock", namespace=OWN), "medium"),
        (fake_mount("/srv", device="8:1", root="/srv", namespace=OWN), None),
        (fake_mount("/host", device="8:1", root="/", namespace=77), None),
    ],
)
def test_mounts_of_the_host_are_told(mount: Mount, severity: str | None) -> None:
    findings = inspect(mounts=(mount,))
    assert [finding.severity for finding in findings] == ([severity] if severity else [])


@pytest.mark.parametrize(("device", "is_told"), [("0:50", False), ("8:1", True)])
def test_the_root_that_a_kernel_begins_with_is_below_every_other_and_no_sign(
    device: str, *, is_told: bool
) -> None:
    hosts = fake_mount("/", id=1, filesystem="rootfs", device="0:2", namespace=HOST)
    copied = fake_mount("/", id=70, parent_id=70, filesystem="rootfs", device="0:2", namespace=OWN)
    own = fake_mount("/", id=71, parent_id=70, device=device, namespace=OWN)
    found = inspect(mounts=(hosts, copied, own))
    assert ["root file system at /" in one.claim for one in found] == [True] * is_told


@pytest.mark.parametrize(
    ("path", "kind", "found"),
    [
        ("/dev/sda", "block device", True),
        ("/dev/mem", "character device", True),
        ("/dev/null", "character device", False),
    ],
)
def test_devices_of_the_host_are_told(path: str, kind: str, *, found: bool) -> None:
    file = OpenFile(80, 3, path, kind, "rw", 0, "0:5", 5, deleted=False, address=Va(77))
    assert [f"has {path} open" in one.claim for one in inspect(files=(file,))] == [True] * found


def test_every_right_is_told_quietly_unless_it_is_expected() -> None:
    [finding] = inspect(capabilities=CapabilitySet(1 << 16, ("cap_sys_module",)))
    assert (finding.severity, "cap_sys_module" in finding.claim) == ("low", True)
    assert inspect(capabilities=CapabilitySet(1 << 16, ()), privileged=("web",)) == []
    assert inspect(capabilities=CapabilitySet(1 << 12, ("cap_net_admin",))) == []


@pytest.mark.parametrize(
    ("agent", "found"),
    [("", False), ("/usr/lib/systemd/systemd-cgroups-agent", False), ("/x", True)],
)
def test_a_release_agent_is_told_with_its_hierarchy(agent: str, *, found: bool) -> None:
    findings = inspect(hierarchies=(CgroupHierarchy(3, "systemd", agent, Va(9)),))
    assert [one.evidence[0].facts["release_agent"] for one in findings] == [agent] * found
