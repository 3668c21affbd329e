"""Options of every command stand before or after it, and what makes no sense is refused."""

import shlex
from pathlib import Path

import pytest

from qvmi.cli.declared.arguments import (
    AUDIT_ENVIRONMENT,
    ENVIRONMENT,
    GDB_ENVIRONMENT,
    Request,
    TextWanted,
    make_parser,
    parse,
)
from qvmi.cli.declared.command import Needs
from qvmi.cli.declared.commands import COMMANDS
from qvmi.cli.declared.values import RawRam
from qvmi.errors import UsageError
from qvmi.machine.attach import ATTACH_TIMEOUT_S
from qvmi.qmp.monitor import ANSWER_TIMEOUT_S

# What each command cannot do without.
LEAST = {
    "percpu": ["kstat"],
    "audit": ["verify", "a.log"],
    "pack": ["list"],
    "respond": ["list"],
    "keys": ["list"],
    "read": ["linux_banner"],
    "translate": ["linux_banner"],
    "symbol": ["linux_banner"],
    "env": ["1"],
    "stack": ["1"],
    "type": ["task_struct"],
    "dump": ["file.core"],
    "isf": ["-o", "file.json"],
    "recover": ["/etc/passwd", "-o", "file"],
    "completion": ["bash"],
    "vol": ["linux.pslist"],
    "disk": ["list"],
}
EVERYWHERE = [
    *("--qmp", "a.sock", "--gdb", "b.sock", "--json"),
    *("--isf", "a.json", "--timeout", "7", "--no-cache", "--audit", "a.log"),
]
NAMES = [command.name for command in COMMANDS]
EXAMPLES = [line for command in COMMANDS for line, _ in command.examples]


@pytest.fixture(autouse=True)
def _no_machine_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.delenv(GDB_ENVIRONMENT, raising=False)
    monkeypatch.delenv(AUDIT_ENVIRONMENT, raising=False)


def typed(name: str) -> list[str]:
    return [name, *LEAST.get(name, [])]


def helped(*arguments: str) -> str:
    with pytest.raises(TextWanted) as wanted:
        parse([*arguments, "--help"])
    return wanted.value.text


@pytest.mark.parametrize("name", NAMES)
def test_options_mean_the_same_before_and_after_the_command(name: str) -> None:
    before = parse([*EVERYWHERE, *typed(name)])
    after = parse([*typed(name), *EVERYWHERE])
    assert before == after
    assert before.options == ("a.sock", "b.sock", True, "a.json", 7.0, False, None, None, "a.log")


@pytest.mark.parametrize("name", NAMES)
def test_without_options_nothing_is_chosen(name: str) -> None:
    assert parse(typed(name)).options == (None, None, False, None, None, True, None, None, None)


@pytest.mark.parametrize("name", sorted({*NAMES} - {"vol"}))  # which has a --dump of its own
def test_a_dump_means_the_same_before_and_after_the_command(name: str) -> None:
    dump = ["--dump", "a.core", "--raw-ram", "2G"]
    assert parse([*dump, *typed(name)]) == parse([*typed(name), *dump])
    options = parse([*dump, *typed(name)]).options
    assert (options.dump, options.raw_ram) == ("a.core", RawRam(2 << 30))


def test_raw_ram_may_be_left_to_find_out() -> None:
    assert parse(["--dump", "a", "--raw-ram", "auto", "ps"]).options.raw_ram == RawRam(None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--qmp", "a.sock", "--dump", "a.core", "ps"], "which of them"),
        (["--raw-ram", "2G", "ps"], "name one with --dump"),
        (["--dump", "a.core", "--raw-ram", "0", "ps"], "0 bytes"),
        (["--dump", "", "ps"], "names nothing"),
    ],
)
def test_what_contradicts_itself_about_a_dump_is_told(arguments: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse(arguments)


def test_a_dump_is_meant_though_the_environment_names_a_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(ENVIRONMENT, "a.sock")
    assert parse(["--dump", "a.core", "ps"]).options.dump == "a.core"


def test_an_option_behind_the_command_wins() -> None:
    assert parse(["--qmp", "first", "ps", "--qmp", "second"]).options.qmp == "second"


ABOUT_A_PROCESS = ("files", "sockets", "maps", "mounts", "cmdline", "creds", "env", "stack")


@pytest.mark.parametrize("name", ABOUT_A_PROCESS)
def test_a_process_can_be_named_in_either_way(name: str) -> None:
    ways = (["90"], ["--pid", "90"], ["90", "--exact"], ["--exact", "--pid", "90"])
    assert [parse([name, *way]).arguments["pid"] for way in ways] == [90] * len(ways)
    with pytest.raises(UsageError, match="not allowed with"):
        parse([name, "90", "--pid", "91"])


@pytest.mark.parametrize("name", ["env", "stack"])
def test_a_process_that_is_needed_must_be_named(name: str) -> None:
    with pytest.raises(UsageError, match=rf"PID.* is required \(see: qvmi {name} --help\)"):
        parse([name])


def test_all_processes_are_meant_where_none_is_named() -> None:
    assert parse(["files"]).arguments["pid"] is None


def test_a_usage_error_points_to_the_help_of_its_command() -> None:
    with pytest.raises(UsageError, match=r"--nonsense \(see: qvmi files --help\)"):
        parse(["files", "--nonsense"])


def test_the_environment_names_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, "/run/vm/qmp.sock")
    assert parse(["ps"]).options.qmp == "/run/vm/qmp.sock"
    assert parse(["--qmp", "other", "ps"]).options.qmp == "other"


def test_the_environment_names_the_gdbstub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GDB_ENVIRONMENT, "localhost:1234")
    assert parse(["ps"]).options.gdb == "localhost:1234"
    assert parse(["--gdb", "other", "ps"]).options.gdb == "other"


def test_an_empty_environment_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, "")
    monkeypatch.setenv(GDB_ENVIRONMENT, "")
    assert parse(["ps"]).options.qmp is None
    assert parse(["ps"]).options.gdb is None


@pytest.mark.parametrize("option", ["--qmp", "--gdb", "--isf"])
@pytest.mark.parametrize("name", ["ps", "regs"])
def test_an_option_without_anything_in_it_is_refused_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, name: str, option: str
) -> None:
    monkeypatch.setenv(ENVIRONMENT, "/run/vm/qmp.sock")
    for arguments in ([name, option, ""], [option, "", name], [name, f"{option}="]):
        with pytest.raises(UsageError, match=f"argument {option}: '' names nothing"):
            parse(arguments)


def test_the_help_says_what_the_timeout_bounds_and_what_not() -> None:
    text = " ".join(helped("ps").split())
    assert f"until QEMU has greeted; {ATTACH_TIMEOUT_S:g}" in text
    assert f"each later answer: {ANSWER_TIMEOUT_S:g}" in text


def test_a_codepack_whose_name_was_misspelt_is_told_the_right_one() -> None:
    with pytest.raises(UsageError, match=r"'hiden-sockets'; is 'hidden-sockets' meant\?"):
        parse(["watch", "hiden-sockets"])


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["ps", "extra"],
        ["ps", "--js"],
        ["--vers"],
        ["ps", "--timeout", "0"],
        ["ps", "--qmp"],
        ["regs", "--vcpu", "first"],
        ["read"],
        ["read", "a", "0"],
        ["read", "--physical", "--user", "1", "0x0"],
        ["read", "--raw", "--hex", "0x0"],
        ["isf"],
        ["cached", "--under", "etc"],
        ["recover", "passwd", "-o", "file"],
        ["recover", "/etc/passwd"],
        ["watch", "no-such-pack"],
        ["completion", "tcsh"],
    ],
    ids=" ".join,
)
def test_refuses_what_makes_no_sense_and_says_where_to_look(arguments: list[str]) -> None:
    with pytest.raises(UsageError, match=r"\(see: qvmi.* --help\)"):
        parse(arguments)


@pytest.mark.parametrize("name", NAMES)
def test_each_help_has_its_examples(name: str) -> None:
    text = helped(name)
    (command,) = (command for command in COMMANDS if command.name == name)
    assert command.examples
    assert all(line in text for line, _ in command.examples)


@pytest.mark.parametrize("name", NAMES)
def test_each_help_shows_the_options_that_matter(name: str) -> None:
    text = helped(name)
    (command,) = (command for command in COMMANDS if command.name == name)
    about_machine = bool(command.on_guest) or command.needs not in {Needs.HOST, Needs.NOTHING}
    assert ("--qmp" in text.partition("examples:")[0]) == about_machine
    assert ("--json" in text) == (command.needs is not Needs.NOTHING)


def test_the_help_lists_every_command() -> None:
    text = helped()
    assert all(f"\n    {name} " in text or f"\n    {name}\n" in text for name in NAMES)


def parsed_example(line: str) -> Request:
    """This parses an example without what a shell would do with the rest of it."""
    words = shlex.split(line.replace('eval "$(', "").rstrip(')"'), comments=True)
    end = min((words.index(word) for word in ("|", ">") if word in words), default=len(words))
    assert words[0] == "qvmi"
    return parse(words[1:end])


@pytest.mark.parametrize("line", EXAMPLES)
def test_every_example_can_be_typed(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("symbols/linux", "plugins", "out"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert parsed_example(line)


def test_the_examples_of_the_main_help_can_be_typed() -> None:
    epilog = make_parser().epilog or ""
    lines = [line.strip() for line in epilog.splitlines() if line.startswith("  qvmi ")]
    assert len(lines) > 3
    assert all(parsed_example(line) for line in lines)
