"""Publishes as they arrive."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvmi.bus.mqtt_packet import Arrival, identifier_and_rest, read_publish
from qvmi.errors import BadMessage

TOPIC = b"qvmi/v1/web/pack/alert"
PROPERTIES = {
    "payload format indicator": b"\x01\x01",
    "message expiry interval": b"\x02\x00\x00\x00\x3c",
    "content type": b"\x03\x00\x10application/json",
    "response topic": b"\x08\x00\x03a/b",
    "correlation data": b"\x09\x00\x04\x00\xff\x0b\x26",
    "subscription identifier": b"\x0b\x07",
    "subscription identifier of four bytes": b"\x0b\xff\xff\xff\x7f",
    "topic alias": b"\x23\x00\x01",
    "user property": b"\x26\x00\x02vm\x00\x03web",
    "user property that paho gives up over": b"\x26\x00\x03\xef\xbb\xbf\x00\x00",
    "nothing": b"",
}
NUMBERS = {
    "subscription identifier": (7,),
    "subscription identifier of four bytes": (268435455,),
}


def read(packet: bytes, header: int = 0x32) -> Arrival:
    _, topic, rest = identifier_and_rest(header, packet)
    return read_publish(header, topic, rest)


def publish(properties: bytes, payload: bytes = b"{}", *, identifier: bytes = b"\x12\x34") -> bytes:
    length = len(TOPIC).to_bytes(2, "big")
    return length + TOPIC + identifier + bytes([len(properties)]) + properties + payload


@pytest.mark.parametrize("name", PROPERTIES)
def test_reads_a_publish_whatever_property_it_has(name: str) -> None:
    packet = publish(b"\x0b\x05" + PROPERTIES[name])
    arrival = Arrival(
        TOPIC.decode(), retained=False, numbers=(5, *NUMBERS.get(name, ())), payload=b"{}"
    )
    assert read(packet) == arrival
    assert identifier_and_rest(0x32, packet)[0] == 0x1234


def test_a_publish_that_needs_no_answer_has_no_identifier() -> None:
    packet = publish(b"", identifier=b"")
    assert identifier_and_rest(0x30, packet)[0] == 0
    assert read(packet, 0x30).payload == b"{}"


@pytest.mark.parametrize(("header", "retained"), [(0x32, False), (0x33, True), (0x3B, True)])
def test_tells_what_is_retained(header: int, *, retained: bool) -> None:
    assert read(publish(b""), header).retained == retained


def test_refuses_a_publish_that_is_cut_off_within_its_head() -> None:
    whole = publish(b"".join(PROPERTIES.values()), b"")
    for length in range(len(whole)):
        with pytest.raises(BadMessage):
            read(whole[:length])
    read(whole)


@pytest.mark.parametrize("name", [name for name, data in PROPERTIES.items() if data])
def test_refuses_a_property_that_is_cut_off_where_the_payload_begins(name: str) -> None:
    with pytest.raises(BadMessage):
        read(publish(PROPERTIES[name][:-1], b""))


@pytest.mark.parametrize(
    "properties", [b"\x00", b"\x11\x00\x00\x00\x01", b"\x7f", b"\x0b\xff\xff\xff\xff\x01"]
)
def test_refuses_a_property_that_no_publish_has(properties: bytes) -> None:
    with pytest.raises(BadMessage):
        read(publish(properties))


def test_refuses_a_topic_that_is_no_text() -> None:
    with pytest.raises(BadMessage):
        read(publish(b"").replace(b"pack", b"pa\xffk"))


@given(
    st.lists(
        st.sampled_from([*PROPERTIES.values(), b"\x00", b"\xff", b"\x26\xff\xff", b"\x0b"]),
        max_size=8,
    ).map(b"".join),
    st.integers(0, 255),
)
def test_any_bytes_are_a_publish_or_refused(data: bytes, header: int) -> None:
    try:
        arrival = read(data, header)
    except BadMessage:
        return
    assert data.endswith(arrival.payload)
