"""The demo works, and leaves nothing behind."""

import os
import subprocess
import uuid
from pathlib import Path

import pytest

from tests.repository.tree import ROOT

# Two boots under emulation on a loaded machine, kernels fetched before.
DEMO_S = 600

MARK = "QVMI_TEST_DEMO"


def running_with(mark: str) -> list[str]:
    """These are the processes that inherited this mark in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except (OSError, ValueError):
            continue  # it ended meanwhile, or belongs to somebody else
    return found


@pytest.mark.timeout(DEMO_S)
def test_shows_everything_and_leaves_nothing_running(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    shown = subprocess.run(
        [ROOT / "scripts" / "demo"],
        cwd="/",
        env={**os.environ, MARK: mark, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=DEMO_S,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    for step in ("$ qvmi info", "$ qvmi tree", "$ qvmi ps", "$ qvmi modules"):
        assert shown.stdout.count(step) == 2
    assert '"kind":"alert"' in shown.stdout.replace(" ", "")
    assert running_with(mark) == []
    assert list(tmp_path.iterdir()) == []
