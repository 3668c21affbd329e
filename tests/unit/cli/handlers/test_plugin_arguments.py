"""What is typed behind ``vol`` becomes a question, or is refused before anything is attached to."""

import sys
from pathlib import Path

import pytest

from qvmi.cli.declared.arguments import TextWanted, parse
from qvmi.cli.handlers.plugin_arguments import Question
from qvmi.cli.printing.escape import escaped
from qvmi.errors import UsageError
from qvmi.semantics.volatility_bridge.table import Rendering


def asked(*words: str) -> Question:
    question: Question = parse(["vol", *words]).arguments["question"]
    return question


def helped(*words: str) -> str:
    with pytest.raises(TextWanted) as wanted:
        parse(["vol", *words])
    return wanted.value.text


def test_what_is_typed_becomes_a_question(tmp_path: Path) -> None:
    question = asked(
        *(
            "-r",
            "csv",
            "-o",
            str(tmp_path),
            "--filters",
            "+comm,init",
            "--hide-columns",
            "off",
            "uid",
        ),
        *("-q", "linux.proc.Maps", "--pid", "1", "0x10", "--dump", "--maxsize", "0x1000"),
    )
    assert question == Question(
        "linux.proc.Maps",
        {"pid": [1, 16], "dump": True, "address": None, "maxsize": 4096},
        Rendering("csv", escaped, ("+comm,init",), ("off", "uid")),
        tmp_path,
        exact=False,
    )


def test_a_part_of_a_name_will_do() -> None:
    assert asked("linux.pslist").plugin == "linux.pslist.PsList"
    assert asked("MountInfo").plugin == "linux.mountinfo.MountInfo"


def test_options_of_every_command_stand_also_behind_those_of_the_plugin() -> None:
    request = parse(["vol", "linux.pslist", "--pid", "1", "--json", "--exact", "--qmp", "a.sock"])
    assert (request.options.json, request.options.qmp) == (True, "a.sock")
    question: Question = request.arguments["question"]
    assert question.exact
    assert question.options["pid"] == [1]


def test_a_dump_is_named_before_the_command_for_behind_it_that_option_is_the_plugins() -> None:
    request = parse(["--dump", "a.core", "vol", "linux.elfs", "--dump", "--pid", "1"])
    assert request.options.dump == "a.core"
    question: Question = request.arguments["question"]
    assert (question.options["dump"], question.options["pid"]) == (True, [1])
    assert parse(["vol", "linux.elfs", "--pid", "1", "--dump"]).options.dump is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["linux.nosuch"], "no plugin 'linux.nosuch'"),
        (["linux.pslist", "--nosuch"], r"unrecognized arguments: --nosuch \(see: qvmi vol linux"),
        (["linux.pslist", "--pid", "first"], "argument --pid: 'first' is no whole number"),
        (["linux.pslist", "extra"], "unrecognized arguments: extra"),
        (["linux.module_extract"], "required: --base"),
        (["-r", "nosuch", "linux.pslist"], "no renderer 'nosuch'; there are: quick"),
        (["-o", "/nosuch", "linux.pslist"], "/nosuch is no folder"),
        (["-p", "/nosuch", "linux.pslist"], "/nosuch is no folder of plugins"),
        (["windows.pslist"], "not for Linux"),
        ([], r"which plugin\?"),
        (["linux.pslist", "-f", "memory.raw"], "unrecognized arguments: -f memory.raw"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_refused(words: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse(["vol", *words])


def test_the_help_lists_the_plugins_and_behind_one_its_options() -> None:
    text = helped("--help")
    assert "  linux.pslist.PsList  " in text
    assert "renderers: quick" in text
    assert "windows." not in text
    of_plugin = helped("linux.pslist", "--help")
    assert "usage: qvmi vol linux.pslist.PsList" in of_plugin
    assert "--decorate-comm" in of_plugin


@pytest.mark.parametrize("failure", ["KeyError('of its own')", "SystemExit('of its own')"])
def test_a_plugin_that_cannot_be_loaded_is_told(tmp_path: Path, failure: str) -> None:
    (tmp_path / "broken_plugin.py").write_text(f"raise {failure}\n")
    with pytest.raises(UsageError, match=r"cannot be loaded: \w+: '?of its own"):
        parse(["vol", "-p", str(tmp_path), "linux.pslist"])
    assert asked("linux.pslist").plugin == "linux.pslist.PsList"  # and left alone from then on
    assert "linux.pslist.PsList" in helped("--help")


def test_without_volatility_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == "volatility3" or name.startswith(BRIDGE):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "volatility3", None)
    monkeypatch.setitem(sys.modules, "volatility3.plugins", None)
    with pytest.raises(UsageError, match=r"pip install 'qvmi\[volatility\]'"):
        parse(["vol", "linux.pslist"])
    assert "none: Volatility 3 is not installed" in helped("--help")


BRIDGE = "qvmi.semantics.volatility_bridge."
