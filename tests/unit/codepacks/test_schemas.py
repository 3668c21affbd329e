"""The JSON Schemas of messages, checked by another implementation than the one that made them."""

import json

import msgspec
import pytest
from jsonschema_rs import Draft202012Validator, ValidationError

from qvmi.bus.local import in_process
from qvmi.bus.message import Message
from qvmi.bus.receipt import Receipt
from qvmi.bus.topic import Topic
from qvmi.codepacks.detectors.hidden_processes import HiddenProcesses
from qvmi.codepacks.schemas import ENVELOPE
from qvmi.manager.schemas import all_schemas
from qvmi.manager.watch import watch
from qvmi.testing import FakeGuest, FakeMachine, fake_process
from tests.asynchronous import asynchronous
from tests.documented_schemas import SCHEMAS, documented, require_documented

REQUEST = Message(
    vm="web", codepack="pack", kind="request", peer="clock", time=1.0, deadline=2.0, body={"x": 1}
)
REPLY = Message(
    vm="web", codepack="pack", kind="reply", peer="clock", time=1.0, answers=REQUEST.id, body={}
)
INIT, EVIL = fake_process(1, name="init"), fake_process(666, name="evil")


def test_the_documented_schemas_are_those_of_the_code() -> None:
    written = {path.stem: json.loads(path.read_text()) for path in SCHEMAS.glob("*.json")}
    assert written == json.loads(json.dumps(all_schemas())), "run scripts/schemas"


@asynchronous
async def test_what_codepacks_say_follows_the_schemas() -> None:
    machine = FakeMachine(FakeGuest(processes=[INIT], process_ids=[INIT, EVIL]))
    seen = set()
    async with watch(machine, packs=[HiddenProcesses(interval_s=0.005)], bus=in_process) as said:
        async for message in said:
            require_documented(message, body=message.kind)
            seen.add(message.kind)
            if seen == {"alert", "status"}:
                break


def test_receipts_follow_their_schema() -> None:
    for receipt in Receipt.split("pack", ["a", "b"]):
        require_documented(receipt.message(vm="web", consumer="log"), body="receipt")


@pytest.mark.parametrize("message", [REQUEST, REPLY], ids=["request", "reply"])
def test_requests_and_replies_follow_the_schema(message: Message) -> None:
    require_documented(message)


def test_fields_of_later_versions_follow_the_schema() -> None:
    require_documented(msgspec.structs.replace(REQUEST, further={"signature": [1]}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"version": 2},
        {"vm": "a/b"},
        {"kind": "alert"},
        {"peer": None},
        {"deadline": "soon"},
        {"answers": "x"},
        {"body": []},
        {"epoch": -1},
        {"provenance": {"taken": "eaten", "at": 0}},
    ],
    ids=str,
)
def test_what_qvmi_refuses_does_not_follow_the_schema(wrong: dict[str, object]) -> None:
    wire = json.loads(REQUEST.to_json()) | wrong
    with pytest.raises(ValidationError):
        Draft202012Validator(documented(ENVELOPE)).validate(wire)


@pytest.mark.parametrize("field", ["version", "vm", "time", "body", "peer", "deadline"])
def test_a_message_without_a_field_does_not_follow_the_schema(field: str) -> None:
    wire = json.loads(REQUEST.to_json())
    del wire[field]
    with pytest.raises(ValidationError):
        Draft202012Validator(documented(ENVELOPE)).validate(wire)


def test_a_topic_of_the_schema_is_a_topic() -> None:
    assert Topic.parse(REQUEST.topic.text) == REQUEST.topic
