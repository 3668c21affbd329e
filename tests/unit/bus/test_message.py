"""The envelope."""

import json
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvmi.bus.message import MAX_MESSAGE_BYTES, Message
from qvmi.bus.topic import Topic
from qvmi.errors import BadMessage, UsageError
from qvmi.view import Provenance, Taken
from tests.unit.bus.test_topic import HOSTILE_NAMES

TOPIC = Topic("web", "pack", "alert")
WIRE = {
    "version": 1,
    "id": "0123456789abcdef0123456789abcdef",
    "vm": "web",
    "codepack": "pack",
    "kind": "alert",
    "time": 1700000000.5,
    "epoch": 3,
    "provenance": {"taken": "live", "at": 1700000000.25, "pause_s": 0.0, "epoch": 3, "retries": 1},
    "body": {"claim": "x", "nested": [1, {"y": None}]},
}


def wire(**changes: object) -> bytes:
    return json.dumps(WIRE | changes).encode()


def test_reads_what_any_json_library_writes() -> None:
    message = Message.from_json(wire(), topic=TOPIC)
    assert message == Message(
        id="0123456789abcdef0123456789abcdef",
        vm="web",
        codepack="pack",
        kind="alert",
        time=1700000000.5,
        epoch=3,
        provenance=Provenance(Taken.LIVE, 1700000000.25, epoch=3, retries=1),
        body={"claim": "x", "nested": [1, {"y": None}]},
    )


def test_writes_what_any_json_library_reads() -> None:
    assert json.loads(Message.from_json(wire()).to_json()) == WIRE


def test_is_one_line_even_if_its_sender_wrote_several() -> None:
    pretty = json.dumps(WIRE | {"body": {"a": "\n\x1b[2J"}}, indent=4).encode()
    written = Message.from_json(pretty).to_json()
    assert b"\n" not in written
    assert b"\x1b" not in written


def test_every_message_has_an_id_of_its_own() -> None:
    ids = {
        Message(vm="web", codepack="pack", kind="alert", time=0.0, body={}).id for _ in range(1000)
    }
    assert len(ids) == 1000


@pytest.mark.parametrize("version", [0, 2, -1, 10**30, "1", None, 1.5, True])
def test_refuses_another_version(version: object) -> None:
    with pytest.raises(BadMessage):
        Message.from_json(wire(version=version))


def test_names_the_version_it_does_not_know_though_the_rest_has_another_form() -> None:
    with pytest.raises(BadMessage, match="version 2 is unknown"):
        Message.from_json(b'{"version":2,"vm":{"name":"web"}}')


def test_takes_fields_that_a_later_sender_added() -> None:
    data = wire(signature="later", body={"later": 1})
    assert Message.from_json(data).body == {"later": 1}


def test_keeps_the_fields_of_the_envelope_that_it_does_not_know() -> None:
    later = {"signature": "later", "further": {"further": [1, None]}, "extra": 2.5}
    written = json.loads(Message.from_json(wire(**later)).to_json())
    assert written == WIRE | later


def test_an_unknown_field_cannot_be_made_to_stand_for_a_known_one() -> None:
    for name in ("vm", "peer", "deadline"):
        with pytest.raises(BadMessage):
            Message(
                vm="web", codepack="pack", kind="alert", time=0.0, body={}, further={name: "other"}
            )


ASKED = {"kind": "request", "peer": "clock", "deadline": 1700000009.5}
ANSWERED = {"kind": "reply", "peer": "clock", "answers": "0123456789abcdef0123456789abcdef"}


@pytest.mark.parametrize("fields", [ASKED, ANSWERED])
def test_requests_and_replies_travel_whole(fields: dict[str, object]) -> None:
    topic = Topic("web", "pack", str(fields["kind"]), "clock")
    message = Message.from_json(wire(**fields), topic=topic)
    assert json.loads(message.to_json()) == WIRE | fields


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        (fields, wrong)
        for fields, others in ((ASKED, ["answers"]), (ANSWERED, ["deadline"]), ({}, []))
        for wrong in (
            [{name: None} for name in fields if name != "kind"]
            + [{name: (ASKED | ANSWERED)[name]} for name in others]
            + (
                []
                if fields
                else [{name: (ASKED | ANSWERED)[name]} for name in ("peer", "deadline")]
            )
            + ([{"deadline": "soon"}, {"peer": "+"}, {"answers": "a/b"}] if fields else [])
        )
    ],
)
def test_refuses_requests_and_replies_that_lack_a_field_or_have_anothers(
    fields: dict[str, object], wrong: dict[str, object]
) -> None:
    Message.from_json(wire(**fields))
    with pytest.raises(BadMessage):
        Message.from_json(wire(**{**fields, **wrong}))


@pytest.mark.parametrize("field", ["version", "vm", "codepack", "kind", "time", "body"])
def test_refuses_a_message_without_a_field(field: str) -> None:
    data = json.dumps({name: value for name, value in WIRE.items() if name != field}).encode()
    with pytest.raises(BadMessage):
        Message.from_json(data)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("field", ["id", "vm", "codepack", "kind"])
def test_refuses_names_that_are_none(field: str, name: str) -> None:
    with pytest.raises(BadMessage):
        Message.from_json(wire(**{field: name}))


@pytest.mark.parametrize("field", ["vm", "codepack", "kind"])
def test_refuses_a_message_that_names_another_topic_than_its_own(field: str) -> None:
    with pytest.raises(BadMessage, match="is where it was"):
        Message.from_json(wire(**{field: "other"}), topic=TOPIC)


@pytest.mark.parametrize("time", [math.inf, -math.inf, math.nan])
def test_cannot_be_made_with_a_time_that_is_none(time: float) -> None:
    with pytest.raises(BadMessage):
        Message(vm="web", codepack="pack", kind="alert", time=time, body={})


@pytest.mark.parametrize(
    "body",
    [
        {"a": object()},
        {"a": "\ud800"},
        {"a": 10**5000},
        {"a": b"x" * MAX_MESSAGE_BYTES},
        {"a": "x" * MAX_MESSAGE_BYTES},
    ],
)
def test_refuses_to_write_a_body_that_is_no_json_or_too_long(body: dict[str, object]) -> None:
    message = Message(vm="web", codepack="pack", kind="alert", time=0.0, body=body)
    with pytest.raises(BadMessage):
        message.to_json()


def test_refuses_to_write_a_body_that_contains_itself() -> None:
    body: dict[str, object] = {}
    body["again"] = body
    with pytest.raises(BadMessage):
        Message(vm="web", codepack="pack", kind="alert", time=0.0, body=body).to_json()


def test_reads_the_longest_message_and_no_longer_one() -> None:
    room = MAX_MESSAGE_BYTES - len(wire(body={"a": ""}))
    assert Message.from_json(wire(body={"a": "x" * room})).body == {"a": "x" * room}
    with pytest.raises(BadMessage, match="at most"):
        Message.from_json(wire(body={"a": "x" * (room + 1)}))


@pytest.mark.parametrize(
    "opening", [b"[", b'{"a":', b'{"version":1,"body":{"a":[[', b'{"version":']
)
def test_refuses_nesting_without_end(opening: bytes) -> None:
    with pytest.raises(BadMessage):
        Message.from_json(opening * (MAX_MESSAGE_BYTES // len(opening)))


@given(
    st.one_of(
        st.binary(max_size=200),
        st.tuples(st.integers(0, 400), st.sampled_from(b'{}[]":,\\\x00\xff\x1b0-e.')).map(
            lambda change: wire()[: change[0]] + bytes([change[1]]) + wire()[change[0] + 1 :]
        ),
    )
)
def test_bytes_are_a_message_or_refused(data: bytes) -> None:
    try:
        message = Message.from_json(data)
    except BadMessage:
        return
    assert Message.from_json(message.to_json()) == message


def test_gives_the_body_as_the_type_asked_for() -> None:
    body = Message.from_json(wire(body={"taken": "dump", "at": 2.0})).read_body(Provenance)
    assert body == Provenance(Taken.DUMP, 2.0)


def test_refuses_to_give_the_body_as_what_it_is_not() -> None:
    with pytest.raises(BadMessage, match="qvmi/v1/web/pack/alert"):
        Message.from_json(wire(body={"taken": "eaten", "at": 2.0})).read_body(Provenance)


def test_refuses_a_body_whose_own_bounds_are_not_kept() -> None:
    class Bounded(msgspec.Struct):
        size: int

        def __post_init__(self) -> None:
            if self.size > 1:
                raise UsageError(f"size {self.size}")

    with pytest.raises(BadMessage, match="qvmi/v1/web/pack/alert: size 2"):
        Message.from_json(wire(body={"size": 2})).read_body(Bounded)
