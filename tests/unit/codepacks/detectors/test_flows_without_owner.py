"""Flows whose socket no process of the guest has."""

import msgspec
import pytest

from qvmi.codepacks.codepack import Finding
from qvmi.codepacks.detectors.flows_without_owner import FlowsWithoutOwner
from qvmi.codepacks.look import MAX_FINDING_BYTES
from qvmi.errors import UsageError
from qvmi.machine.devices.flow_watch import Flow
from qvmi.semantics.guest_os import Gap, Socket
from qvmi.testing import (
    FakeGuest,
    FakeMemory,
    fake_flow,
    fake_process,
    fake_resources,
    fake_socket,
    looks,
)

WEB = fake_process(80, name="web")
NOBODYS = fake_socket(None, inode=4711, state="ESTABLISHED", local="10.0.2.15:40000")
FORGED = fake_flow("192.0.2.7:443", unowned=True, pid=None, socket=None, name="evil.example")
HIDDEN = fake_flow("192.0.2.8:443", pid=None, process="", socket=NOBODYS.address)


def inspect(guest: FakeGuest, *flows: Flow) -> list[Finding]:
    shown = fake_resources(flows=flows)
    return list(FlowsWithoutOwner().inspect(guest, FakeMemory({}), shown))


def guest_with(*sockets: Socket) -> FakeGuest:
    return FakeGuest(processes=[WEB], sockets=[fake_socket(80), *sockets])


def test_a_flow_without_a_socket_is_found_with_both_views_and_its_name() -> None:
    pack, shown = FlowsWithoutOwner(0.001), fake_resources(flows=[FORGED])
    (found,) = looks(pack, guest_with(), resources=shown).confirmed
    wire, guest = found.finding.evidence
    assert "192.0.2.7:443 (evil.example) has no socket" in found.finding.claim
    assert (wire.view, wire.present, guest.present) == ("network card", True, False)
    assert (wire.facts["name"], wire.facts["bytes_out"]) == ("evil.example", 1000)
    assert guest.facts == {"sockets": 1}


def test_a_flow_whose_socket_nobody_has_is_found_with_three_views() -> None:
    (finding,) = inspect(guest_with(NOBODYS), HIDDEN)
    wire, table, descriptors = finding.evidence
    assert "no process that is seen has open" in finding.claim
    assert (wire.present, table.present, descriptors.present) == (True, True, False)
    assert (table.address, table.facts["inode"]) == (NOBODYS.address, 4711)
    assert finding.settle_s == 5.0


@pytest.mark.parametrize(
    ("flow", "socket"),
    [
        (fake_flow("192.0.2.7:443"), NOBODYS),
        (fake_flow("192.0.2.7:443", pid=None, socket=None), NOBODYS),
        (HIDDEN, msgspec.structs.replace(NOBODYS, inode=0, state="FIN_WAIT1")),
        (HIDDEN, msgspec.structs.replace(NOBODYS, address=NOBODYS.address + 8)),
        (HIDDEN, msgspec.structs.replace(NOBODYS, pid=80, fd=5)),
    ],
    ids=["owned", "too short", "left by its process", "gone meanwhile", "held by now"],
)
def test_what_has_an_owner_or_ends_is_none(flow: Flow, socket: Socket) -> None:
    assert inspect(guest_with(socket), flow) == []


def test_nobody_is_missed_behind_a_gap_in_the_descriptors() -> None:
    guest = guest_with()
    gap = Gap("fdtable", None, "cannot be read")
    guest.show("sockets", [NOBODYS], gaps=[gap])
    pack, shown = FlowsWithoutOwner(0.001), fake_resources(flows=[HIDDEN])
    inspection = looks(pack, guest, resources=shown)
    assert (inspection.found_anything, inspection.saw_all) == (False, False)


def test_of_flows_that_are_somebodys_the_guest_is_not_asked() -> None:
    guest = guest_with()
    assert inspect(guest, fake_flow("192.0.2.7:443")) == []
    assert guest.calls == []


def test_each_flow_is_one_finding_and_the_same_in_each_look() -> None:
    other = msgspec.structs.replace(FORGED, local="10.0.2.15:40001")
    later = msgspec.structs.replace(FORGED, packets_out=99, name="")
    keys = [finding.key for finding in inspect(guest_with(), FORGED, other, later)]
    assert keys[0] == keys[2] != keys[1]


def test_flows_without_end_are_told_of_as_one() -> None:
    flows = [
        fake_flow(f"[2001:db8::{number:x}]:443", unowned=True, pid=None, socket=None)
        for number in range(5000)
    ]
    findings = inspect(guest_with(), *flows)
    assert len(findings) == 101
    assert "4900 further flows" in findings[-1].claim


def test_a_name_without_end_makes_a_finding_that_fits() -> None:
    long = msgspec.structs.replace(FORGED, name="\\xff" * 20000)
    (finding,) = inspect(guest_with(), long)
    assert len(msgspec.json.encode(finding)) < MAX_FINDING_BYTES


@pytest.mark.parametrize(("interval_s", "watched_s"), [(10.0, 8.0), (1000.0, 300.0)])
def test_flows_are_watched_for_less_than_the_interval(interval_s: float, watched_s: float) -> None:
    assert FlowsWithoutOwner(interval_s).wanted.flows_s == watched_s


def test_without_a_watching_it_says_so() -> None:
    with pytest.raises(UsageError, match="was not shown flows"):
        list(FlowsWithoutOwner().inspect(guest_with(), FakeMemory({})))
