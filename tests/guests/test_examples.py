"""Every example runs on real guests, as a user would run it."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

import pytest

from tests.command_line import DEADLINE_S, environment
from tests.guests.lab import Guest, GuestConfig
from tests.guests.pool import GuestPool
from tests.repository.tree import ROOT

EXAMPLES: Final = ROOT / "examples"
LONGEST: Final = 60  # lines; what takes more belongs into the library
RUN_BELOW: Final = {"01_list_processes.py", "02_watch_modules.py", "03_many_machines.py"}


def command(name: str, *arguments: str) -> list[str]:
    # The tree's package, as if it were installed.
    run = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    return [sys.executable, "-c", run, str(EXAMPLES / name), *arguments]


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(name, *arguments),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


@contextmanager
def started(name: str, *arguments: str) -> Iterator[IO[str]]:
    """This runs an example for as long as the block lasts, and gives what it prints."""
    with subprocess.Popen(
        command(name, *arguments), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def _a_cache_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def guest(guests: GuestPool) -> Guest:
    return guests.restore(GuestConfig(kernel="6.1"))


def test_each_example_is_run_here_and_short() -> None:
    paths = sorted(EXAMPLES.glob("*.py"))
    assert {path.name for path in paths} == RUN_BELOW
    assert {path.name: len(path.read_text().splitlines()) <= LONGEST for path in paths} == {
        path.name: True for path in paths
    }


def test_lists_the_processes(guest: Guest) -> None:
    before = guest.settled_truth()
    done = run("01_list_processes.py", guest.qmp)
    assert (done.returncode, done.stderr) == (0, "")
    pids = {int(line.split()[0]) for line in done.stdout.splitlines()}
    lasting = before.unchanged_until(guest.truth()).values()
    assert {task.pid for task, _ in lasting if task.leads} - pids == set()
    assert all(line.isprintable() for line in done.stdout.splitlines())


def test_tells_of_a_module_that_comes_and_goes(guest: Guest) -> None:
    loaded = len(guest.truth().modules)
    with started("02_watch_modules.py", guest.qmp) as lines:
        assert lines.readline() == f"{loaded} modules are loaded\n"
        guest.ask("load ifb")
        (module,) = (module for module in guest.truth().modules if module.name == "ifb")
        assert lines.readline() == f"loaded 'ifb' at {module.address:#x}\n"
        guest.ask("unload ifb")
        assert lines.readline() == "unloaded 'ifb'\n"


def test_looks_at_many_machines_though_one_fails(guests: GuestPool, tmp_path: Path) -> None:
    first = guests.restore(GuestConfig(kernel="6.1"))
    second = guests.restore(GuestConfig(kernel="5.10"))
    missing = str(tmp_path / "none.sock")
    done = run("03_many_machines.py", first.qmp, missing, second.qmp)
    assert done.returncode == 3
    lines = done.stdout.splitlines()
    for line, guest in ((lines[0], first), (lines[2], second)):
        truth = guest.settled_truth()
        users = sum(not task.kernel_thread for task in truth.processes)
        assert line == f"{guest.qmp}: linux {truth.release!r}, {users} user processes"
    assert re.match(re.escape(f"{missing}: SocketUnreachable("), lines[1])


@pytest.mark.parametrize("name", sorted(RUN_BELOW - {"03_many_machines.py"}))
def test_without_a_socket_it_says_what_is_wrong(name: str, tmp_path: Path) -> None:
    done = run(name, str(tmp_path / "none.sock"))
    assert done.returncode == 1
    assert done.stderr.startswith("SocketUnreachable(")
    assert run(name).stderr.startswith("usage: ")
