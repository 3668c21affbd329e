"""Shells complete what can be typed, from scripts made of the parser's own words."""

import shutil
import subprocess

import pytest

from qvmi.cli.declared.commands import COMMANDS
from qvmi.cli.declared.words import SHELLS
from qvmi.cli.handlers.completion import script

DEADLINE_S = 60
NAMES = {command.name for command in COMMANDS}
CASES = {
    "qvmi re": {"regs", "read", "recover", "respond"},
    "qvmi --qmp /x re": {"regs", "read", "recover", "respond"},
    "qvmi --json --timeout 3 tr": {"translate", "tree"},
    "qvmi regs --v": {"--vcpu"},
    "qvmi ps --v": set[str](),
    "qvmi ps --q": {"--qmp"},
    "qvmi find --q": set[str](),
    "qvmi watch h": {"hidden-processes", "hidden-modules", "hidden-sockets"},
    "qvmi completion z": {"zsh"},
}


def lines(shell: str) -> str:
    return "\n".join(script(shell)) + "\n"


def said(*command: str, text: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not on this machine: apt-get install {command[0]}")
    return subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=DEADLINE_S, check=True
    ).stdout


def completed_by_bash(typed: str) -> set[str]:
    call = (
        f"COMP_WORDS=({typed}); [[ {typed!r} == *' ' ]] && COMP_WORDS+=('')\n"
        "COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _qvmi\n"
        "printf '%s\\n' \"${COMPREPLY[@]}\"\n"
    )
    return set(said("bash", "--norc", text=lines("bash") + call).split())


def completed_by_fish(typed: str) -> set[str]:
    found = said("fish", "--no-config", text=lines("fish") + f"complete -C {typed!r}\n")
    return {line.partition("\t")[0] for line in found.splitlines()}


@pytest.mark.parametrize("typed", CASES)
def test_bash_completes(typed: str) -> None:
    assert completed_by_bash(typed) == CASES[typed]


def test_bash_offers_every_command() -> None:
    assert {word for word in completed_by_bash("qvmi ") if not word.startswith("-")} == NAMES


@pytest.mark.parametrize("typed", ["qvmi --qmp ", "qvmi ps --isf ", "qvmi isf -o "])
def test_bash_leaves_files_to_readline(typed: str) -> None:
    asked = 'compopt() { echo "$@"; }\n'
    call = f"COMP_WORDS=({typed} ''); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _qvmi\n"
    assert said("bash", "--norc", text=asked + lines("bash") + call).split() == ["-o", "default"]


def test_bash_offers_nothing_where_a_number_is_due() -> None:
    assert completed_by_bash("qvmi regs --vcpu ") == set()


@pytest.mark.parametrize("typed", CASES)
def test_fish_completes(typed: str) -> None:
    assert completed_by_fish(typed) == CASES[typed]


def test_fish_offers_every_command() -> None:
    assert completed_by_fish("qvmi ") == NAMES


def test_zsh_takes_the_script() -> None:
    said("zsh", "-f", "-n", text=lines("zsh"))


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_and_option_is_in_the_script(shell: str) -> None:
    text = lines(shell)
    for word in (*NAMES, "vcpu", "physical", "hidden-processes", "no-cache"):
        assert word in text
