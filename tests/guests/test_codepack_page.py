"""The page on codepacks is true: what it says is typed, from an empty folder to an alert of a real guest."""

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.command_line import DEADLINE_S, QVMI, environment
from tests.guests.lab import Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool
from tests.guests.test_signed_packs import first_alert_of
from tests.repository.tree import ROOT

PAGE = (ROOT / "docs" / "codepacks.md").read_text(encoding="utf-8")
FILES = ("codepack.toml", "detector.py", "test_detector.py", "policy.toml")
"""The files that the page shows, in its order."""


def blocks(*kinds: str) -> list[str]:
    """These are the page's blocks of code of these kinds."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return [text for kind, text in found if kind in kinds]


def written(folder: Path) -> None:
    pack = folder / "forbidden-programs"
    pack.mkdir()
    for name, text in zip(FILES, blocks("toml", "python"), strict=True):
        assert f"{name}`" in PAGE
        ((pack if name in FILES[:2] else folder) / name).write_text(text)


def run_line(line: str, folder: Path, home: dict[str, str]) -> str:
    """This runs a line as it is typed, but of this tree."""
    words = f"{shlex.join(QVMI)} " if line.startswith("qvmi ") else ""
    typed = words + line.removeprefix("qvmi ").replace("python3", shlex.quote(sys.executable))
    done = subprocess.run(
        ["/bin/sh", "-c", typed],
        cwd=folder,
        env={**home, "PYTHONPATH": str(ROOT)} if words else home,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, (line, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(GuestConfig("6.1"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    return tmp_path


def test_what_the_page_on_codepacks_says_leads_from_nothing_to_an_alert(
    guest: Guest, folder: Path
) -> None:
    [server] = [task for task in guest.truth().processes if task.name == b"httpd"]
    written(folder)
    home = environment(HOME=str(folder), XDG_CONFIG_HOME=str(folder / ".config"))
    home["PYTHONPATH"] = str(ROOT)
    (console,) = blocks("console")
    *lines, watch = [line.removeprefix("$ ") for line in console.splitlines()]
    for line in lines:
        run_line(line.replace("PYTHONPATH=", f"PYTHONPATH={shlex.quote(str(ROOT))}:"), folder, home)
    words = shlex.split(watch.replace("/run/vm/qmp.sock", guest.qmp))
    with subprocess.Popen(
        [*QVMI, *words[1:], "--json"], cwd=folder, env=home, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            alert = first_alert_of("forbidden-programs", process.stdout)
            process.send_signal(signal.SIGINT)
            process.stdout.read()
            assert process.wait(DEADLINE_S) == 1
        finally:
            process.kill()
    body = alert["body"]
    assert isinstance(body, dict)
    assert body["finding"]["claim"] == f"httpd runs as process {server.pid}"
