"""Imports point down only, and the contract that says so notices when they do not."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import grimp
import pytest

from tests.repository.tree import ROOT, copy_of_the_tree

# Rooms that may wait; all others must be kept synchronous by the contract.
ASYNC_ROOMS = {
    "__main__",  # the cli by another name
    "bus",
    "cli",
    "codepacks",
    "gdbstub",
    "host",
    "machine",
    "manager",
    "qmp",
    "remote",
    "testing",
}
LINT_S = 120


def contract(name: str) -> dict[str, Any]:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    found: dict[str, Any] = next(c for c in contracts["contracts"] if c["id"] == name)
    return found


def rooms() -> set[str]:
    children = (ROOT / "qvmi").iterdir()
    return {c.stem for c in children if c.is_dir() or c.suffix == ".py"} - {
        "__init__",
        "__pycache__",
    }


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command as l; l()",
            "--no-cache",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=LINT_S,
        check=False,
    )


def test_every_room_has_its_floor() -> None:
    floors = set(re.findall(r"\w+", " ".join(contract("floors")["layers"])))
    assert rooms() - floors == set()


def test_every_room_is_sync_or_named_as_async() -> None:
    sync = {name.removeprefix("qvmi.") for name in contract("sync-rooms")["source_modules"]}
    assert rooms() - sync - ASYNC_ROOMS == set()
    assert sync & ASYNC_ROOMS == set()


def test_no_room_below_the_top_imports_the_public_names() -> None:
    graph = grimp.build_graph("qvmi", cache_dir=None)
    importers = graph.find_modules_that_directly_import("qvmi")
    assert {i for i in importers if i.split(".")[1] not in {"cli", "testing"}} == set()


def test_the_contracts_hold() -> None:
    linted = lint(ROOT)
    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("semantics/offender.py", "import qvmi.bus", "qvmi.semantics.offender -> qvmi.bus"),
        ("memory/offender.py", "import asyncio", "qvmi.memory.offender -> asyncio"),
        ("machine/offender.py", "import qemu.qmp", "qvmi.machine.offender -> qemu"),
        ("bus/offender.py", "import aiomqtt", "qvmi.bus.offender -> aiomqtt"),
        ("machine/offender.py", "import rich", "qvmi.machine.offender -> rich"),
        ("offender.py", "", "not listed as layers"),
        (
            "semantics/linux/pages/offender.py",
            "import qvmi.semantics.linux.tasks.task",
            "qvmi.semantics.linux.pages.offender -> qvmi.semantics.linux.tasks.task",
        ),
        ("semantics/linux/offender.py", "", "not listed as layers"),
        (
            "machine/ways/offender.py",
            "import qvmi.machine.holding.pause",
            "qvmi.machine.ways.offender -> qvmi.machine.holding.pause",
        ),
        ("machine/offender.py", "", "not listed as layers"),
        (
            "cli/declared/offender.py",
            "import qvmi.cli.handlers.watching",
            "qvmi.cli.declared.offender -> qvmi.cli.handlers.watching",
        ),
    ],
)
def test_the_contracts_notice(tmp_path: Path, file: str, line: str, complaint: str) -> None:
    clone = copy_of_the_tree(tmp_path / "clone")
    (clone / "qvmi" / file).write_text(line + "\n")
    linted = lint(clone)
    assert linted.returncode == 1
    assert complaint in linted.stdout
