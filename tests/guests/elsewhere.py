"""The ``qvmi`` command as it runs where QEMU's process cannot be seen: on another host, or as if.

It gets a process namespace of its own, in which QEMU has no pid: what the kernel tells of the other
end of a socket is empty then, as over TCP. It may also be denied all folders that QEMU shares with it.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from tests.command_line import QVMI, environment
from tests.repository.tree import ROOT

__all__ = ["Elsewhere"]

ENDS_S: Final = 180
"""A dump through the monitor takes 20 s on an idle machine."""
HIDE: Final = 'for folder in $HIDDEN; do mount -t tmpfs none "$folder"; done; exec "$@"'


class Elsewhere:
    """This runs ``qvmi`` in namespaces of its own.

    Args:
        folder: for its cache and its temporary files.
        shares_files: whether it sees the folders for temporary files that QEMU sees.
    """

    def __init__(self, folder: Path, *, shares_files: bool) -> None:
        self._temporary = folder / "temporary"
        self._cache = folder / "cache"
        self._temporary.mkdir(exist_ok=True)
        self._hidden = "" if shares_files else f"{self._temporary} /dev/shm"

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """This runs the command with pipes."""
        user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
        namespaces = ("unshare", *user, "--mount", "--pid", "--fork", "--mount-proc")
        self._require(namespaces)
        return subprocess.run(
            (*namespaces, "sh", "-ec", HIDE, "sh", *QVMI, *arguments),
            cwd=ROOT,
            env=environment(
                HIDDEN=self._hidden,
                TMPDIR=str(self._temporary),
                XDG_RUNTIME_DIR="",
                XDG_CACHE_HOME=str(self._cache),
            ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ENDS_S,
            check=False,
        )

    def document(self, *arguments: str) -> Any:  # noqa: ANN401 - JSON
        """This is the one document that the command prints with --json, without a word on stderr."""
        done = self.run("--json", *arguments)
        assert (done.returncode, done.stderr) == (0, ""), done
        return json.loads(done.stdout)

    @staticmethod
    def _require(namespaces: tuple[str, ...]) -> None:
        if subprocess.run((*namespaces, "true"), check=False, capture_output=True).returncode:
            pytest.skip("no namespaces may be made here: see unshare(1)")
