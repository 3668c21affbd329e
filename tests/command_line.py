"""The ``qvmi`` command as tests run it: from this tree, in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from tests.repository.tree import ROOT
from tests.terminals import Terminal, terminal

__all__ = ["DEADLINE_S", "QVMI", "environment", "qvmi", "qvmi_document", "qvmi_on_terminal"]

DEADLINE_S: Final = 60
"""A command is done within a second; a loaded machine may be many times slower."""

QVMI: Final = (
    sys.executable,
    "-c",
    "import sys; from qvmi.cli.main import main; sys.exit(main())",
)


def environment(**changes: str) -> dict[str, str]:
    """This is the test's environment without what would change the command's behaviour."""
    dropped = (
        "QVMI_QMP",
        "QVMI_GDB",
        "QVMI_AUDIT",
        "QVMI_DEBUG",
        "NO_COLOR",
        "COLUMNS",
        "PYTHONUNBUFFERED",
    )
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **changes}


def qvmi(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """This runs the command with pipes; `changes` are of the environment."""
    return subprocess.run(
        (*QVMI, *arguments),
        cwd=ROOT,
        env=environment(**changes),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def qvmi_document(*arguments: str) -> Any:  # noqa: ANN401 - JSON
    """This is the one document that the command prints with --json, without a word on stderr."""
    done = qvmi("--json", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)


@contextmanager
def qvmi_on_terminal(*arguments: str, columns: int = 120) -> Iterator[Terminal]:
    """This runs the command on a terminal of its own."""
    command = (*QVMI, *arguments)
    with terminal(command, cwd=ROOT, environment=environment(), columns=columns) as screen:
        yield screen
