"""Credentials, namespaces and cgroups are those that the guest's own /proc tells of every process."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import pytest

import qvmi
from qvmi import Listing
from qvmi.semantics.guest_os import Cgroup, Credentials, Namespaces
from tests.asynchronous import asynchronous
from tests.guests.agreement import shown_name
from tests.guests.lab import Guest

CONTAINER: Final = "4711f00dcafe" * 5 + "4711"
POD: Final = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"
"""What the population calls them (tests/guests/lab/init/confined.c)."""
KINDS: Final = ("mnt", "net", "uts", "ipc", "user", "cgroup", "time")
NAMESPACE_LINK: Final = re.compile(r" (\w+) -> \w+:\[(\d+)\]$")
DELETED: Final = " (deleted)"
MODE: Final = re.compile(r" \((?:enforce|complain|kill|unconfined|mixed|user)\)$")
NOBODY_CHANGES: Final = ("credentials", "namespaces", "cgroups")


def _fields(status: str) -> dict[str, str]:
    """These are the lines of a /proc/PID/status, in which the line ends of a name are escaped."""
    pairs = (line.partition(":") for line in status.split("\n"))
    return {name: value.strip() for name, _, value in pairs}


def _ids(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split()))


def _status(row: Credentials) -> tuple[object, ...]:
    """This is what a row says of that which /proc/PID/status says, too."""
    sets = (row.inheritable, row.permitted, row.effective, row.bounding, row.ambient)
    return (
        (row.uid, row.euid, row.suid, row.fsuid),
        (row.gid, row.egid, row.sgid, row.fsgid),
        row.groups,
        tuple(one.number for one in sets),
        row.no_new_privs,
        ("disabled", "strict", "filter").index(row.seccomp),
    )


def _true_status(status: str) -> tuple[object, ...]:
    told = _fields(status)
    sets = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    return (
        _ids(told["Uid"]),
        _ids(told["Gid"]),
        _ids(told["Groups"]),
        tuple(int(told[name], 16) for name in sets),
        told["NoNewPrivs"] == "1",
        int(told["Seccomp"]),
    )


def _named(listing: Iterable[Credentials], name: str) -> Credentials:
    (found,) = (row for row in listing if row.name == name)
    return found


@asynchronous
async def test_credentials_equal_proc(
    guest: Guest, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    true = {pid: status for pid, status in guest.proc("status").items() if status}
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        processes = machine.guest.processes()
        listing = machine.guest.credentials()
    assert not listing.gaps
    seen = {row.pid: _status(row) for row in listing}
    assert seen.keys() == {process.pid for process in processes}
    lasting = seen.keys() & true.keys()
    assert {pid: seen[pid] for pid in lasting} == {pid: _true_status(true[pid]) for pid in lasting}
    proof_count(len(lasting))


@asynchronous
async def test_rights_are_told_by_name_and_as_the_process_set_them(
    guest: Guest, profiles: Path
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        listing = machine.guest.credentials()
    fewer, ambient = (_named(listing, name) for name in ("fewer-caps", "ambient-caps"))
    assert fewer.effective.names == ("cap_net_admin",)
    assert fewer.permitted.names == ("cap_chown", "cap_net_admin", "cap_bpf")
    assert fewer.inheritable.names == ("cap_chown", "cap_checkpoint_restore")
    assert {"cap_sys_module", "cap_sys_rawio"}.isdisjoint(fewer.bounding.names)
    assert len(fewer.bounding.names) == 39
    assert ambient.ambient.names == ("cap_net_raw",)
    # No file of /proc tells these: SECBIT_NOROOT and its lock, and SECBIT_KEEP_CAPS.
    assert (fewer.securebits, ambient.securebits) == (0b11, 0b10000)
    assert {row.securebits for row in listing} == {0, 0b11, 0b10000}
    seccomp = {row.name: row.seccomp for row in listing if row.seccomp != "disabled"}
    assert seccomp == {"seccomp-filter": "filter", "seccomp-strict": "strict"}
    assert len(_named(listing, "many-groups").groups) == 1500


@asynchronous
async def test_labels_equal_proc(guest: Guest, profiles: Path) -> None:
    true = {pid: MODE.sub("", text.strip()) for pid, text in guest.proc("attr/current").items()}
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        listing = machine.guest.credentials()
    lasting = [row for row in listing if row.pid in true]
    assert {row.pid: row.label for row in lasting} == {row.pid: true[row.pid] for row in lasting}
    assert {row.label for row in listing} == {"unconfined", ":qvmi-box:unconfined"}


@asynchronous
async def test_at_rest_every_process_has_credentials_of_its_own(
    guest: Guest, profiles: Path
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        listing = machine.guest.credentials()
    assert {row.shared_with for row in listing} == {()}
    assert [row for row in listing if row.cred != row.real_cred] == []
    assert len({row.cred for row in listing}) == len(listing)


def _true_namespaces(guest: Guest) -> dict[int, dict[str, int]]:
    """These are the links of /proc/PID/ns, which a zombie has but two of."""
    found: dict[int, dict[str, int]] = {}
    pid = 0
    for line in guest.run("ls -l /proc/[0-9]*/ns").decode().splitlines():
        if line.startswith("/proc/"):
            pid = int(line.split("/")[2])
        elif link := NAMESPACE_LINK.search(line):
            found.setdefault(pid, {})[link[1]] = int(link[2])
    return found


@asynchronous
async def test_namespaces_equal_proc(
    guest: Guest, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    true = _true_namespaces(guest)
    inner = {
        pid: _ids(_fields(status)["NSpid"])[-1]
        for pid, status in guest.proc("status").items()
        if status
    }
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        processes = machine.guest.processes()
        listing = machine.guest.namespaces()
    assert not listing.gaps
    assert [row.pid for row in listing] == [process.pid for process in processes]
    lasting = [row for row in listing if row.pid in true and row.pid in inner]
    for row in lasting:
        told = true[row.pid]
        assert {kind: getattr(row, kind) for kind in KINDS} == {k: told.get(k) for k in KINDS}
        assert (row.pid_ns, row.inner_pid) == (told["pid"], inner[row.pid])
    proof_count(len(lasting))


@asynchronous
async def test_a_process_in_a_box_has_a_pid_and_a_hostname_of_its_own(
    guest: Guest, profiles: Path
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        rows = {row.name: row for row in machine.guest.namespaces()}
    for name in ("sleep", "ns-init", "box-init", "box-inner"):
        said = guest.run(f"nsenter -t {rows[name].pid} -u hostname").removesuffix(b"\n")
        assert rows[name].hostname == shown_name(said)
    assert rows["box-inner"].hostname == "box \x1b[31m[b]<i>"
    assert [rows[name].inner_pid for name in ("box-init", "box-inner", "ns-child")] == [1, 1, 2]
    assert rows["box-inner"].user == rows["box-init"].user != rows["box"].user
    zombie = rows["zombie-child"]
    assert (zombie.mnt, zombie.hostname, zombie.user) == (None, None, rows["sleep"].user)


def _cgroup(row: Cgroup) -> tuple[object, ...]:
    return (row.hierarchy, row.controllers, row.path, row.deleted)


def _true_cgroups(text: str) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    for line in text.removesuffix("\n").split("\n"):
        hierarchy, controllers, path = line.split(":", 2)
        deleted = hierarchy == "0" and path.endswith(DELETED)
        name = shown_name(path.removesuffix(DELETED if deleted else "").encode("latin-1"))
        found.append((int(hierarchy), controllers, name, deleted))
    return sorted(found)


@asynchronous
async def test_cgroups_equal_proc(
    guest: Guest, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    true = {pid: text for pid, text in guest.proc("cgroup").items() if text}
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        processes = machine.guest.processes()
        listing = machine.guest.cgroups()
    assert not listing.gaps
    seen: dict[int, list[tuple[object, ...]]] = {}
    for row in listing:
        seen.setdefault(row.pid, []).append(_cgroup(row))
    assert seen.keys() == {process.pid for process in processes}
    lasting = seen.keys() & true.keys()
    assert {pid: seen[pid] for pid in lasting} == {pid: _true_cgroups(true[pid]) for pid in lasting}
    assert ("/gone", True) in {(row.path, row.deleted) for row in listing}
    proof_count(sum(len(seen[pid]) for pid in lasting))


@asynchronous
async def test_a_process_in_a_container_is_told_with_it(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        listing = machine.guest.cgroups()
    inside = [row for row in listing if row.runtime]
    assert [(row.name, row.hierarchy, row.runtime, row.container, row.pod) for row in inside] == [
        ("in-docker", 0, "docker", CONTAINER, ""),
        ("in-docker", 1, "docker", CONTAINER, ""),
        ("in-docker", 2, "lxc", "web", ""),
        ("in-pod", 0, "containerd", CONTAINER, POD),
        ("in-odd-cgroup", 0, "systemd-nspawn", "a-b", ""),
    ]


@pytest.mark.parametrize("question", NOBODY_CHANGES)
@asynchronous
async def test_those_of_one_process_are_the_same_rows_as_among_all(
    guest: Guest, profiles: Path, question: str
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        ask: Callable[..., Listing[Credentials | Namespaces | Cgroup]]
        ask = getattr(machine.guest, question)
        every = ask().items
        for process in machine.guest.processes():
            if not process.kernel_thread:
                assert ask(process).items == tuple(r for r in every if r.pid == process.pid)


@pytest.mark.parametrize("question", NOBODY_CHANGES)
@asynchronous
async def test_of_one_moment_they_are_what_is_seen_at_rest(
    guest: Guest, profiles: Path, question: str
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        resting = {row.pid for row in machine.guest.processes() if not row.kernel_thread}
        live: Listing[Credentials] = getattr(machine.guest, question)()
        exact: Listing[Credentials] = await machine.capture(
            lambda linux: getattr(linux, question)()
        )
    assert exact.provenance.taken == "captured"
    assert exact.provenance.pause_s > 0
    assert exact.gaps == ()
    at_rest = [row for row in live if row.pid in resting]
    assert [row for row in exact if row.pid in resting] == at_rest
