"""The table of commands fits the functions that run them."""

import inspect
from importlib import resources

import pytest

from qvmi.cli.declared.arguments import make_parser, parse
from qvmi.cli.declared.command import Command, Needs
from qvmi.cli.declared.commands import COMMANDS
from qvmi.cli.declared.words import EVENT_KINDS, PACKS, RESPONSE_HOLDER
from qvmi.cli.session import handler_of
from qvmi.manager.response.records import HOLDER
from qvmi.semantics.rows.events import EventKind
from tests.built_in_packs import made
from tests.unit.cli.declared.test_arguments import typed

# The public commands, as documented; taking one away breaks somebody's script.
DOCUMENTED = {
    *("info", "ps", "tree", "modules", "threads", "regs", "read", "translate", "symbol", "isf"),
    *("dump", "gdb", "drgn", "vol", "find", "watch", "completion", "audit", "doctor"),
    *("mounts", "files", "maps", "cmdline", "env", "log", "sockets", "stack", "type"),
    *("pack", "keys", "gateway", "respond"),
    *("creds", "namespaces", "cgroups", "bpf", "percpu", "cached", "recover", "scan", "events"),
    *("disk", "flows"),
}


def test_all_documented_commands_are_there() -> None:
    assert {command.name for command in COMMANDS} == DOCUMENTED


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_handler_takes_what_its_command_declares(command: Command) -> None:
    handler = handler_of(command.handler)
    parameters = inspect.signature(handler).parameters.values()
    own = [one.name for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY]
    given = [one.name for one in parameters if one.kind is not inspect.Parameter.KEYWORD_ONLY]
    on_machine = command.needs in {Needs.GUEST, Needs.MACHINE}
    on_guest = on_machine or command.needs is Needs.CODE
    subjects = {Needs.MONITOR: ["monitor", "gdb"], Needs.SYSTEM: ["options"]}
    subject = subjects.get(command.needs, ["machine"] if on_guest else [])
    assert given == [*subject, "output"]
    assert inspect.iscoroutinefunction(handler) == (on_machine or command.needs in subjects)
    assert sorted(parse(typed(command.name)).arguments) == sorted(own)


@pytest.mark.parametrize(
    ("command", "action"), [(one, action[0]) for one in COMMANDS for action in one.on_guest]
)
def test_a_handler_of_one_action_takes_the_same(command: Command, action: str) -> None:
    asked = command.as_asked(action)
    parameters = inspect.signature(handler_of(asked.handler)).parameters.values()
    own = [one.name for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY]
    given = [one.name for one in parameters if one.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert given == ["machine", "output"]
    assert asked.needs is Needs.GUEST
    assert sorted(parse(typed(command.name)).arguments) == sorted(own)
    assert command.as_asked("list") is command


def test_every_codepack_that_is_offered_can_be_made() -> None:
    manifests = resources.files("qvmi.codepacks") / "manifests"
    assert sorted(file.name for file in manifests.iterdir()) == sorted(
        f"{name}.toml" for name in PACKS
    )
    packs = [made(name, 2.5) for name in PACKS]
    assert [pack.name for pack in packs] == list(PACKS)
    assert [pack.interval_s for pack in packs] == [2.5 for _ in PACKS]


def test_every_kind_of_event_can_be_named() -> None:
    assert tuple(EventKind) == EVENT_KINDS


def test_a_policy_calls_who_acts_on_alerts_as_the_bus_does() -> None:
    assert RESPONSE_HOLDER == HOLDER


def test_all_help_fits_a_terminal_of_100_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    parser = make_parser()
    texts = [command.details for command in COMMANDS] + [parser.format_help()]
    assert max(len(line) for text in texts for line in text.splitlines()) <= 100
