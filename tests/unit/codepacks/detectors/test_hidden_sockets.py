"""The tables of sockets against the descriptors that lead to sockets."""

import pytest

from qvmi.codepacks.codepack import Finding
from qvmi.codepacks.detectors.hidden_sockets import HiddenSockets
from qvmi.codepacks.question import ConfirmQuestion
from qvmi.errors import WalkFailed
from qvmi.semantics.guest_os import Gap, Socket
from qvmi.testing import FakeGuest, FakeMemory, fake_process, fake_socket

WEB = fake_process(80, name="web")
HELD = fake_socket(80)


def inspect(guest: FakeGuest) -> list[Finding]:
    return list(HiddenSockets().inspect(guest, FakeMemory({})))


def shown(*sockets: Socket, tabled: list[Socket] | None = None) -> FakeGuest:
    return FakeGuest(processes=[WEB], sockets=sockets, tabled_sockets=tabled)


def test_sockets_that_are_held_and_tabled_are_none() -> None:
    assert inspect(shown(HELD, fake_socket(80, fd=4, protocol="unix", local="/run/x"))) == []


@pytest.mark.parametrize("protocol", ["tcp", "udp6", "raw", "packet"])
def test_a_socket_that_a_program_made_and_nobody_has_is_found(protocol: str) -> None:
    [finding] = inspect(shown(fake_socket(None, protocol=protocol, inode=99)))
    assert (finding.severity, finding.technique, finding.settle_s) == ("high", "T1014", 5.0)
    assert [one.present for one in finding.evidence] == [True, False]


@pytest.mark.parametrize(
    ("remote", "named"),
    [("0.0.0.0:0", "0.0.0.0:80 (LISTEN)"), ("10.0.0.9:443", "0.0.0.0:80 to 10.0.0.9:443 (LISTEN)")],
)
def test_where_a_socket_leads_is_told_of_one_that_leads_somewhere(remote: str, named: str) -> None:
    [finding] = inspect(shown(fake_socket(None, inode=99, remote=remote)))
    assert finding.claim.startswith(f"the tcp socket {named} is open")


def test_who_has_it_and_has_a_pid_is_named_so_that_others_can_be_asked_about_the_process() -> None:
    rat = fake_process(666, name="rat\x1b[2J")
    sock = fake_socket(None, inode=99)
    its = fake_socket(666, fd=7, inode=99, address=sock.address)
    guest = FakeGuest(processes=[WEB], process_ids=[WEB, rat], sockets=[sock, its])
    [finding] = inspect(guest)
    assert finding.claim.endswith(
        "has it: process 666 (rat\x1b[2J) has, which is off the task list"
    )
    assert ConfirmQuestion.of([finding]).pids == (666,)
    assert finding.evidence[2].facts["fd"] == 7


def test_a_table_of_pids_that_cannot_be_walked_hides_no_socket() -> None:
    guest = shown(fake_socket(None, inode=99))
    guest.fail_next("process_ids", WalkFailed("init_pid_ns.idr", "its root is not readable"))
    assert [one.severity for one in inspect(guest)] == ["high"]


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "TIME_WAIT", "inode": 0},
        {"protocol": "netlink", "inode": 7},
        {"protocol": "unix", "inode": 7},
    ],
)
def test_the_kernels_own_and_connections_that_end_are_none(changes: dict[str, object]) -> None:
    assert inspect(shown(fake_socket(None, **changes))) == []  # type: ignore[arg-type]  # fields of the row


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, True),
        ({"state": "CLOSE"}, False),
        ({"protocol": "udp", "state": "CLOSE", "local": "0.0.0.0:53"}, True),
        ({"protocol": "udp", "state": "CLOSE", "local": "0.0.0.0:0"}, False),
        ({"protocol": "unix", "local": ""}, False),
    ],
)
def test_a_socket_that_is_open_and_in_no_table_is_found(
    changes: dict[str, object], *, found: bool
) -> None:
    findings = inspect(shown(fake_socket(80, **changes), tabled=[]))  # type: ignore[arg-type]  # fields of the row
    assert ["is in no table" in one.claim for one in findings] == [True] * found


def test_what_is_behind_a_gap_in_the_tables_is_not_missing() -> None:
    guest = shown(HELD)
    guest.show("tabled_sockets", [], gaps=[Gap("tables of tcp sockets", None, "torn")])
    assert inspect(guest) == []


def test_a_socket_that_is_closed_meanwhile_is_none() -> None:
    guest = shown()
    guest.show("sockets", [HELD], once=True)
    guest.show("tabled_sockets", [], once=True)
    assert inspect(guest) == []


@pytest.mark.parametrize(("name", "found"), [("web", True), ("tcpdump", False)])
@pytest.mark.parametrize("protocol", ["raw", "raw6", "packet"])
def test_raw_sockets_are_told_quietly_unless_they_are_expected(
    name: str, protocol: str, *, found: bool
) -> None:
    process = fake_process(80, name=name)
    guest = FakeGuest(processes=[process], sockets=[fake_socket(80, protocol=protocol)])
    assert [(one.severity, one.technique) for one in inspect(guest)] == [("low", "T1040")] * found
