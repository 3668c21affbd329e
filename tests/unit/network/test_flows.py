"""Flows are counted from the guest's side, and no more of them are kept than fit."""

from ipaddress import ip_address

import pytest

from qvmi.network import flows
from qvmi.network.flows import FlowKey, FlowTable
from qvmi.network.packets import parse_frame
from tests.unit.network.frames import dns_answer, frame

GUEST, FAR = ("10.0.2.15", 40000), ("192.0.2.7", 443)
KEY = FlowKey("tcp", 4, *GUEST, *FAR)


def note(table: FlowTable, raw: bytes, *, sent: bool, now: int = 0) -> None:
    table.note(parse_frame(raw), len(raw), sent=sent, now=now)


def test_both_directions_are_one_flow() -> None:
    table = FlowTable()
    out, back = frame(GUEST, FAR), frame(FAR, GUEST, payload=b"content")
    note(table, out, sent=True)
    note(table, back, sent=False, now=3)
    note(table, back, sent=False, now=4)
    record = table.flows[KEY]
    assert list(table.flows) == [KEY]
    assert (record.packets_out, record.packets_in) == (1, 2)
    assert (record.bytes_out, record.bytes_in) == (len(out), 2 * len(back))
    assert record.last_round == 0


@pytest.mark.parametrize(
    ("flags", "counts"), [(0x18, True), (0x10, False), (0x14, False), (0x11, False)]
)
def test_what_a_kernel_sends_by_itself_shows_no_living_socket(flags: int, *, counts: bool) -> None:
    table = FlowTable()
    note(table, frame(GUEST, FAR, flags=flags), sent=True, now=5)
    assert (table.flows[KEY].last_round == 5) is counts


def lasting(*rounds: int, flags: int = 0x18) -> tuple[int, int] | None:
    """This is the longest spell of a flow with packets in these rounds."""
    table = FlowTable()
    for number in rounds:
        note(table, frame(GUEST, FAR, flags=flags, payload=b"x"), sent=True, now=number)
    return table.flows[KEY].lasting


def test_a_flow_lasts_while_its_packets_do_not_pause() -> None:
    assert lasting(0, 1, 2, 3) == (0, 3)
    assert lasting(0, 8, 16) == (0, 16)
    assert lasting(0, 1, 2, 20, 21, 22, 23) == (20, 23)


def test_two_uses_of_the_same_ends_do_not_last() -> None:
    assert lasting(0, 0, 7, 7) is None
    assert lasting(0, 9, 18, 27) is None


def test_a_connection_that_begins_anew_is_another_one() -> None:
    table = FlowTable()
    for number in range(4):
        note(table, frame(GUEST, FAR, flags=0x02), sent=True, now=number)
        note(table, frame(GUEST, FAR, payload=b"x"), sent=True, now=number)
    assert table.flows[KEY].lasting is None


def test_names_are_kept_for_addresses() -> None:
    table = FlowTable()
    message = dns_answer("www.example.org", (1, ip_address(FAR[0]).packed))
    answer = frame(("10.0.2.3", 53), ("10.0.2.15", 41000), protocol="udp", payload=message)
    note(table, answer, sent=False)
    assert table.names == {FAR[0]: "www.example.org"}


def test_a_guest_that_answers_itself_names_nobody() -> None:
    table = FlowTable()
    message = dns_answer("www.example.org", (1, ip_address(FAR[0]).packed))
    answer = frame(("10.0.2.15", 53), ("10.0.2.3", 41000), protocol="udp", payload=message)
    note(table, answer, sent=True)
    assert table.names == {}


def test_what_is_no_packet_is_counted() -> None:
    table = FlowTable()
    note(table, b"\xff" * 60, sent=True)
    assert (table.others, len(table.flows)) == (1, 0)


def test_more_flows_than_are_kept_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows, "_MAX_FLOWS", 10)
    table = FlowTable()
    for port in range(1, 26):
        note(table, frame(GUEST, (FAR[0], port)), sent=True)
    assert (len(table.flows), table.dropped) == (10, 15)
