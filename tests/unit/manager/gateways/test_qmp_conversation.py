"""A client of the QMP gateway: negotiation, grants, what is handed on and what is not."""

import json
from typing import Any

import pytest

from qvmi.manager.gateways.monitor_lines import MAX_PRINTED, monitor_line
from qvmi.manager.gateways.qmp_conversation import Answer, Do, QmpConversation, event, greeting
from qvmi.manager.gateways.qmp_rules import COMMANDS
from qvmi.policy import READ_ONLY, AddressRange, Grant, Limits, Policy, PolicyGate, Space
from qvmi.qmp.events import OtherEvent, Reset, Stop
from qvmi.qmp.monitor import QemuVersion

NOTHING = Policy(frozenset())
ALL = Policy(frozenset(Grant))


def conversation(policy: Policy) -> QmpConversation:
    begun = QmpConversation(PolicyGate("", policy), lambda: 0.0)
    (answer,) = begun.feed(b'{"execute":"qmp_capabilities"}\n')
    assert isinstance(answer, Answer)
    return begun


def asked(policy: Policy, command: str, **arguments: object) -> Answer | Do:
    request = {"execute": command, "arguments": arguments, "id": 7}
    (step,) = conversation(policy).feed(json.dumps(request).encode() + b"\n")
    return step


def human(policy: Policy, line: str, **more: object) -> Answer | Do:
    return asked(policy, "human-monitor-command", **{"command-line": line, **more})


def told(step: Answer | Do) -> dict[str, Any]:
    assert isinstance(step, Answer)
    answer: dict[str, Any] = json.loads(step.said)
    return answer


NEEDS = {
    "query-memdev": Grant.READ_MEMORY,
    "query-memory-devices": Grant.READ_MEMORY,
    "qom-get": Grant.READ_MEMORY,
    "stop": Grant.PAUSE,
    "cont": Grant.PAUSE,
}
ARGUMENTS: dict[str, dict[str, object]] = {
    "qom-get": {"path": "/objects/mem", "property": "mem-path"},
    "human-monitor-command": {"command-line": "info status"},
}


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_passes_with_its_grant_and_not_without(command: str) -> None:
    arguments = ARGUMENTS.get(command, {})
    needed = NEEDS.get(command)
    granted = asked(
        NOTHING if needed is None else Policy(frozenset({needed})), command, **arguments
    )
    if command == "query-commands":
        names = {row["name"] for row in told(granted)["return"]}
        assert names == {*COMMANDS, "qmp_capabilities"}
        return
    assert isinstance(granted, Do)
    assert (granted.what.command, granted.what.arguments, granted.id) == (command, arguments, 7)
    if needed is not None:
        without = Policy(frozenset(Grant) - {needed})
        answer = told(asked(without, command, **arguments))
        assert f"needs grant '{needed.value}'" in answer["error"]["desc"]
        assert answer["id"] == 7


@pytest.mark.parametrize(
    ("line", "needed"),
    [
        ("info version", None),
        ("info mtree -f", None),
        ("info registers -a", Grant.READ_REGISTERS),
        ("xp /1024xb 0x1000", Grant.READ_MEMORY),
        ("xp /4gx 0xFFF", Grant.READ_MEMORY),
    ],
)
def test_each_line_passes_with_its_grant_and_not_without(line: str, needed: Grant | None) -> None:
    for more in ({}, {"cpu-index": 1}):
        step = human(NOTHING if needed is None else Policy(frozenset({needed})), line, **more)
        assert isinstance(step, Do)
        assert step.what.arguments == {"command-line": line, **more}
    if needed is not None:
        assert "error" in told(human(Policy(frozenset(Grant) - {needed}), line))


@pytest.mark.parametrize(
    "more", [{"cpu-index": -1}, {"cpu-index": "1"}, {"x": 1}, {"cpu-index": True}]
)
def test_a_line_with_other_arguments_is_refused(more: dict[str, object]) -> None:
    assert "error" in told(human(ALL, "info registers", **more))


@pytest.mark.parametrize(
    ("line", "start", "size"),
    [("xp /8xb 0x10", 0x10, 8), ("xp /xg 0x0", 0, 8), ("xp /2hd 0xfff", 0xFFF, 4)],
)
def test_what_a_line_reads_is_known_before(line: str, start: int, size: int) -> None:
    found = monitor_line(line)
    assert found is not None
    assert found.memory is not None
    assert (found.memory.start, found.memory.size) == (start, size)


@pytest.mark.parametrize(
    "line",
    [
        *("", "quit", "x"),
        *(
            f"xp /{MAX_PRINTED + 1}xb 0x0",
            "xp /0xb 0x0",
            "xp /1xb 0x1 ",
            "xp /1xb 0x1\n",
            "xp /1xb 1",
        ),
        *("xp /1ib 0x0", "xp /1x 0x0", "xp /1xb $rip", "xp /1xb 0x1+1", "xp /1xb\t0x1", "xp 0x1"),
        *("XP /1xb 0x1", "xp /\u0661xb 0x0", "info registers\nquit", "info registers -a -b"),
    ],
)
def test_no_other_spelling_of_a_line_passes(line: str) -> None:
    assert monitor_line(line) is None


def test_ranges_of_a_policy_bound_what_is_printed_and_keep_the_whole_from_being_named() -> None:
    ranges = (AddressRange(Space.PHYSICAL, 0x1000, 0x1000),)
    policy = NOTHING.within(Grant.READ_MEMORY, Limits(ranges=ranges))
    assert isinstance(human(policy, "xp /4096xb 0x1000"), Do)
    for line in ("xp /4097xb 0x1000", "xp /1xb 0xfff", "xp /1xb 0x2000"):
        assert "outside of its ranges" in told(human(policy, line))["error"]["desc"]
    assert "error" in told(asked(policy, "query-memdev"))
    assert "error" in told(asked(policy, "qom-get", path="/objects/m", property="mem-path"))


def test_rates_of_a_policy_bound_how_often_something_is_asked() -> None:
    policy = NOTHING.within(Grant.READ_REGISTERS, Limits(per_second=2))
    request = {"execute": "human-monitor-command", "arguments": {"command-line": "info registers"}}
    begun = conversation(policy)
    steps = [*begun.feed((json.dumps(request) + "\n").encode() * 3)]
    assert [type(step) for step in steps] == [Do, Do, Answer]


def test_a_stop_that_used_up_its_rate_can_still_be_ended() -> None:
    begun = conversation(NOTHING.within(Grant.PAUSE, Limits(per_second=1)))
    steps = [*begun.feed(b'{"execute":"stop"}\n{"execute":"cont"}\n{"execute":"stop"}\n')]
    assert [type(step) for step in steps] == [Do, Do, Answer]


def test_nothing_passes_before_the_negotiation() -> None:
    begun = QmpConversation(PolicyGate("", ALL), lambda: 0.0)
    (answer,) = begun.feed(b'{"execute":"stop"}\n')
    assert told(answer)["error"]["class"] == "CommandNotFound"
    assert not begun.negotiated


def test_the_greeting_offers_no_capability() -> None:
    said = json.loads(greeting(QemuVersion(7, 2, 22, "Debian")))
    qemu = {"major": 7, "minor": 2, "micro": 22}
    assert said == {"QMP": {"version": {"qemu": qemu, "package": "Debian"}, "capabilities": []}}


def test_events_are_written_anew() -> None:
    reset = json.loads(event(Reset(name="RESET", at=12.25, guest=True, reason="guest-reset")))
    assert reset == {
        "event": "RESET",
        "data": {"guest": True, "reason": "guest-reset"},
        "timestamp": {"seconds": 12, "microseconds": 250000},
    }
    assert "data" not in json.loads(event(Stop(name="STOP", at=0.0)))
    other = json.loads(event(OtherEvent(name="RTC_CHANGE", at=1.0, data={"offset": 3})))
    assert other["data"] == {"offset": 3}


def test_reading_only_is_what_is_granted_by_default() -> None:
    assert isinstance(human(READ_ONLY, "info registers"), Do)
    assert "error" in told(asked(READ_ONLY, "stop"))
