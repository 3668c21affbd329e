"""A throwaway pytest project, run in a process of its own, to try the suite's plugins on."""

import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.repository.tree import ROOT

__all__ = ["Outcome", "Project"]

# A pytest run over three one-line tests; a minute means it hangs.
_DEADLINE_S: Final = 60


@dataclass(frozen=True, slots=True)
class Outcome:
    """This is how a run of pytest ended."""

    code: int
    output: str


@dataclass(frozen=True, slots=True)
class Project:
    """This is a folder with tests of its own and one of this suite's plugins."""

    folder: Path
    plugin: str

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))

    def run(self, *arguments: str, **environment: str) -> Outcome:
        """This runs the project's tests; the environment's QVMI_ variables are given here alone."""
        self.write("pytest.ini", "[pytest]\n")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("QVMI_", "PYTEST_"))}
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-p",
                self.plugin,
                "-p",
                "no:cacheprovider",
                *arguments,
            ],
            cwd=self.folder,
            # Without plugins from elsewhere: they cost a second a run.
            env={
                **inherited,
                "PYTHONPATH": str(ROOT),
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=_DEADLINE_S,
            check=False,
        )
        return Outcome(done.returncode, done.stdout + done.stderr)
