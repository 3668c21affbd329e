"""A file of playbooks says what it says, and what cannot be meant is told with its place."""

import pytest

from qvmi.codepacks.codepack import Severity
from qvmi.errors import BadSettings
from qvmi.manager.response.playbook import Agreement, AtExit, OnFailure, OnRestart, Question, Same
from qvmi.manager.response.playbook_file import parse_playbooks, read_playbooks
from qvmi.manager.response.steps import (
    STEPS,
    DiskSnapshot,
    Dump,
    Evidence,
    NicDown,
    Pause,
    Resume,
    Say,
)
from qvmi.policy import Grant, read_policies
from tests.repository.tree import ROOT

EXAMPLES = ROOT / "examples" / "playbooks"

WHOLE = """\
version = 1
[playbooks.one]
folder = "/evidence"
on-failure = "stop"
on-restart = "undo"
at-exit = "undo"
at-most-per-hour = 3
[playbooks.one.when]
codepack = "a"
severity = "high"
technique = "T1014.001"
agree = {codepack = "b", same = "pid", within-s = 10}
ask = {codepack = "c", deadline-s = 5}
[[playbooks.one.then]]
do = "nic-down"
nic = "net0"
[[playbooks.one.then]]
do = "pause"
longest-s = 2.5
[[playbooks.one.then]]
do = "dump"
[[playbooks.one.then]]
do = "resume"
[[playbooks.one.then]]
do = "disk-snapshot"
overlay-folder = "/overlays"
[[playbooks.one.then]]
do = "message"
text = "over"
"""

LEAST = (
    "{top}\n[playbooks.one]\n{book}\n[playbooks.one.when]\n{when}\n[[playbooks.one.then]]\n{step}\n"
)


def test_all_that_a_file_says_is_read() -> None:
    (book,) = parse_playbooks("book.toml", WHOLE.encode())
    assert (book.name, book.folder, book.at_most_per_hour) == ("one", "/evidence", 3)
    assert (book.on_failure, book.on_restart, book.at_exit) == (
        OnFailure.STOP,
        OnRestart.UNDO,
        AtExit.UNDO,
    )
    when = book.when
    assert (when.codepack, when.severity, when.technique) == ("a", Severity.HIGH, "T1014.001")
    assert when.agree == Agreement("b", Same.PID, 10.0)
    assert when.ask == Question("c", 5.0)
    assert book.then == (
        NicDown("net0"),
        Pause(2.5),
        Dump(60.0),
        Resume(),
        DiskSnapshot(None, "/overlays"),
        Say("over", "notice"),
    )


def test_what_is_left_out_is_as_documented() -> None:
    text = LEAST.format(top="version = 1", book="", when="", step='do = "nic-up"')
    (book,) = parse_playbooks("book.toml", text.encode())
    assert (book.on_failure, book.on_restart, book.at_exit) == (
        OnFailure.GO_ON,
        OnRestart.FINISH,
        AtExit.KEEP,
    )
    assert (book.when.severity, book.when.agree, book.when.ask) == (Severity.LOW, None, None)
    assert book.at_most_per_hour == 6


WRONG = {
    "no version": ({"top": ""}, "version is missing"),
    "another version": ({"top": "version = 2"}, "version of 2 is not known"),
    "unknown key": ({"book": 'folders = "/x"'}, "folders is not known; is 'folder' meant?"),
    "unknown condition": ({"when": 'code-pack = "a"'}, "a key 'code-pack' that is not known"),
    "unknown step": ({"step": 'do = "nic-dwn"'}, "step 1 has do = 'nic-dwn'; is 'nic-down' meant?"),
    "no step": ({"step": "nic = 'x'"}, "step 1 has no do"),
    "unknown option": ({"step": 'do = "resume"\nlater = true'}, "unknown field `later`"),
    "pause without end": ({"step": 'do = "pause"'}, "missing required field `longest-s`"),
    "pause too long": ({"step": 'do = "pause"\nlongest-s = 601'}, "above 0, and 600 at most"),
    "pause of no time": ({"step": 'do = "pause"\nlongest-s = 0'}, "above 0"),
    "pause of nan": ({"step": 'do = "pause"\nlongest-s = nan'}, "above 0"),
    "resume of nothing": ({"step": 'do = "resume"'}, "step 1 has no pause before it"),
    "no folder": ({"step": 'do = "dump"'}, "folder is missing: dump and evidence need one"),
    "relative folder": ({"book": 'folder = "x"'}, "write where it is, from / on"),
    "relative overlay": ({"step": 'do = "disk-snapshot"\noverlay-folder = "x"'}, "from / on"),
    "no technique": ({"when": 'technique = "rootkit"'}, "no id such as T1014"),
    "no severity": ({"when": 'severity = "bad"'}, "invalid enum value 'bad'"),
    "no name": ({"when": 'codepack = "a/b"'}, "no codepack's name"),
    "agrees with itself": (
        {"when": 'codepack = "a"\nagree = {codepack = "a", same = "pid", within-s = 1}'},
        "two agree",
    ),
    "agrees with anybody": (
        {"when": 'agree = {codepack = "a", same = "pid", within-s = 1}'},
        "two agree",
    ),
    "agrees for ever": (
        {"when": 'codepack = "a"\nagree = {codepack = "b", same = "pid", within-s = 3601}'},
        "3600 at most",
    ),
    "asks for ever": ({"when": 'ask = {codepack = "a", deadline-s = 3601}'}, "3600 at most"),
    "too often": ({"book": "at-most-per-hour = 61"}, "1 to 60"),
    "forged message": ({"step": 'do = "message"\ntext = "x"\nkind = "response"'}, "cannot be used"),
    "forged alert": ({"step": 'do = "message"\ntext = "x"\nkind = "alert"'}, "cannot be used"),
    "forged sight": ({"step": 'do = "message"\ntext = "x"\nkind = "status"'}, "cannot be used"),
    "topic that escapes": ({"step": 'do = "message"\ntext = "x"\nkind = "a/#"'}, "cannot be used"),
    "empty message": ({"step": 'do = "message"\ntext = ""'}, "text of 1 to 2000"),
}


@pytest.mark.parametrize(("parts", "problem"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_meant_is_refused(parts: dict[str, str], problem: str) -> None:
    whole = {"top": "version = 1", "book": "", "when": "", "step": 'do = "nic-down"'} | parts
    with pytest.raises(BadSettings) as caught:
        parse_playbooks("book.toml", LEAST.format(**whole).encode())
    assert problem in str(caught.value)
    assert str(caught.value).startswith("book.toml")


def test_a_pause_within_a_pause_is_refused() -> None:
    step = 'do = "pause"\nlongest-s = 1\n'
    steps = f"{step}[[playbooks.one.then]]\n{step}"
    text = LEAST.format(top="version = 1", book="", when="", step=steps)
    with pytest.raises(BadSettings, match="step 2 is in a pause already"):
        parse_playbooks("book.toml", text.encode())


def test_every_step_is_documented() -> None:
    told = (ROOT / "docs/response.md").read_text()
    assert all(f"`{word}`" in told for word in STEPS)


def test_the_example_is_granted_what_its_steps_need_and_nothing_else() -> None:
    (book,) = read_playbooks(EXAMPLES / "hidden_process.toml")
    assert [type(step) for step in book.then] == [NicDown, Pause, Evidence, Resume, Say]
    policy = read_policies(EXAMPLES / "policy.toml").named["response"]
    assert policy.grants == {Grant.NIC, Grant.PAUSE, Grant.READ_MEMORY}
