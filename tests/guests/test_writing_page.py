"""Every file of docs/writing-a-codepack.md is written, and every command run, as a reader would."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.command_line import QVMI, environment
from tests.guests.lab import Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool
from tests.repository.tree import ROOT

PAGE: Final = "docs/writing-a-codepack.md"
FILE: Final = re.compile(r"^```(?:python|toml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAME: Final = re.compile(r"^`([\w/]+\.(?:py|toml))`", re.MULTILINE)
"""A file's name begins the paragraph above what it holds."""
CONSOLE: Final = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SOCKET: Final = "/run/vm/qmp.sock"
DEADLINE_S: Final = 100
LISTENING: Final = "0A"


def text() -> str:
    return (ROOT / PAGE).read_text(encoding="utf-8")


def commands() -> list[str]:
    lines = [line for block in CONSOLE.findall(text()) for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines]


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(GuestConfig(kernel="6.1"))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """This is a folder with the files of the page."""
    names, contents = NAME.findall(text()), FILE.findall(text())
    for name, content in zip(names, contents, strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def ran(command: str, folder: Path, guest: Guest) -> subprocess.CompletedProcess[str]:
    """This runs a command of the page in the reader's own folder and home."""
    words = shlex.split(command.replace(SOCKET, guest.qmp).replace("~", str(folder)))
    program = {"qvmi": list(QVMI), "python": [sys.executable]}[words[0]]
    places = {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder / ".config")}
    return subprocess.run(
        [*program, *words[1:]],
        cwd=folder,
        env=environment(
            **places,
            PYTHONPATH=str(ROOT),
            XDG_CACHE_HOME=str(folder / ".cache"),
            PYTEST_ADDOPTS="",  # what is meant for the run around this one
        ),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def listening_ports(guest: Guest) -> set[int]:
    """These are the TCP ports that are listened on in any network, by the guest's own /proc."""
    tables = guest.run("cat /proc/[0-9]*/net/tcp /proc/[0-9]*/net/tcp6").decode()
    rows = [line.split() for line in tables.splitlines()]
    return {
        int(row[1].rpartition(":")[2], 16) for row in rows if len(row) > 3 and row[3] == LISTENING
    }


def test_all_its_files_are_written_here(written: Path) -> None:
    names = {str(path.relative_to(written)) for path in written.rglob("*.*") if path.is_file()}
    assert names == {"open_ports/codepack.toml", "open_ports/detector.py", "test_open_ports.py"}
    assert text().count("```python\n") + text().count("```toml\n") == len(names)


def test_a_reader_goes_from_nothing_to_a_codepack_that_finds_what_the_guest_shows(
    written: Path, guest: Guest
) -> None:
    pytest_command, *preparing, run, watch = commands()
    tested = ran(pytest_command, written, guest)
    assert (tested.returncode, "3 passed" in tested.stdout) == (0, True), tested.stdout
    for command in preparing:
        done = ran(command, written, guest)
        assert done.returncode == 0, (command, done.stderr)
    ports = listening_ports(guest) - {22}
    assert ports
    done = ran(run, written, guest)
    said = {int(port) for port in re.findall(r"listens on TCP port (\d+)", done.stdout)}
    assert (done.returncode, said) == (1, ports), done.stderr
    assert not any(written.glob("open_ports/__pycache__"))
    done = ran(watch, written, guest)
    assert "listens on TCP port" in done.stdout, done.stderr
    assert done.returncode == 1
