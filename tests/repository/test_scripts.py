"""The scripts set up a bare machine, and leave a prepared one alone."""

import os
import subprocess
from collections.abc import Collection
from pathlib import Path

import pytest

from tests.repository.tree import ROOT, copy_of_the_tree

SCRIPTS = [
    "scripts/bench",
    "scripts/check",
    "scripts/demo",
    "scripts/prove",
    "scripts/schemas",
    "scripts/test",
    ".ci/run",
]

PARSE_S = 60
# Everything is downloaded and installed; minutes on a slow line.
SET_UP_S = 900


@pytest.mark.parametrize("script", SCRIPTS)
def test_is_plain_bash_that_parses(script: str) -> None:
    path = ROOT / script
    assert path.read_text().startswith("#!/usr/bin/env bash\n")
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", path], timeout=PARSE_S, check=True)
    subprocess.run(["bash", "-n", ROOT / "scripts" / "setup.sh"], timeout=PARSE_S, check=True)


class BareMachine:
    """This is a PATH with all of this machine's commands but some, where apt only takes notes."""

    def __init__(self, folder: Path, *, without: Collection[str]) -> None:
        self.bin = folder / "bin"
        self.notes = folder / "notes"
        self.bin.mkdir()
        self.notes.touch()
        for command in commands_on_path():
            if command.name not in without and not (self.bin / command.name).is_symlink():
                (self.bin / command.name).symlink_to(command)
        self.put("apt-get", f'echo "$@" >>"{self.notes}"')
        self.put("sudo", 'exec "$@"')

    def put(self, name: str, body: str) -> None:
        command = self.bin / name
        command.unlink(missing_ok=True)
        command.write_text(f"#!/bin/bash\n{body}\n")
        command.chmod(0o755)

    def run(self, line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/bash", "-c", f'source "{ROOT}/scripts/setup.sh"; {line}'],
            env={**os.environ, "PATH": str(self.bin)},
            capture_output=True,
            text=True,
            timeout=PARSE_S,
            check=False,
        )


def commands_on_path() -> list[Path]:
    folders = [Path(folder) for folder in os.environ["PATH"].split(":")]
    return [c for f in folders if f.is_dir() for c in f.iterdir() if os.access(c, os.X_OK)]


def test_installs_only_what_is_missing(tmp_path: Path) -> None:
    machine = BareMachine(tmp_path, without={"qemu-system-x86_64", "zstd"})
    ended = machine.run("ensure_packages")
    assert ended.returncode == 0, ended.stderr
    assert machine.notes.read_text().splitlines() == [
        "update -q",
        "install -q -y --no-install-recommends -- qemu-system-x86 zstd",
    ]


def test_asks_apt_for_nothing_where_nothing_is_missing(tmp_path: Path) -> None:
    machine = BareMachine(tmp_path, without=())
    ended = machine.run("ensure_packages")
    assert ended.returncode == 0, ended.stderr
    assert machine.notes.read_text() == ""


def test_says_what_to_do_where_python_is_too_old(tmp_path: Path) -> None:
    newer = [c.name for c in commands_on_path() if c.name.startswith("python3")]
    machine = BareMachine(tmp_path, without=newer)
    machine.put("python3", '[[ $1 == --version ]] && echo "Python 3.9.2"')
    ended = machine.run("ensure_packages")
    assert ended.returncode == 1
    assert "needs Python 3.11 or newer" in ended.stderr
    assert "Python 3.9.2" in ended.stderr


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of_the_tree(tmp_path_factory.mktemp("elsewhere") / "a clone")


def ask_for_the_version(clone: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    return subprocess.run(
        [clone / "scripts" / "test", "--version"],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        timeout=SET_UP_S,
        check=False,
    )


@pytest.mark.packaging
@pytest.mark.timeout(SET_UP_S)
def test_sets_up_a_clone_whose_path_has_spaces_and_does_it_once(clone: Path) -> None:
    first = ask_for_the_version(clone)
    assert first.returncode == 0, first.stderr
    assert "making the virtual environment" in first.stderr
    assert "pytest 9" in first.stdout + first.stderr
    second = ask_for_the_version(clone)
    assert second.returncode == 0, second.stderr
    assert "qvmi: " not in second.stderr
