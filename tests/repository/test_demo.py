"""The demo works, and leaves nothing behind but the evidence it tells of."""

import json
import os
import re
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
def test_shows_everything_to_the_report_of_a_response_and_leaves_nothing_running(
    tmp_path: Path,
) -> None:
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
    pid = check_story(shown.stdout)
    (left,) = tmp_path.iterdir()
    (report,) = re.findall(r"^the report stays: (.+)$", shown.stdout, re.MULTILINE)
    assert Path(report).parent.parent == left
    check_evidence(Path(report).parent, pid)
    assert running_with(mark) == []


def check_story(said: str) -> int:
    """This looks for what has to happen, in this order, and gives the pid of what was hidden."""
    story = re.search(
        r"""(?msx)
        ^[^\n]*\ status\ +hidden-processes:\ sight\ full$ .*
        ^process\ (?P<pid>\d+)\ \(orphan\)\ is\ hidden$ .*
        ^[^\n]*\ alert\ +high\ T1014\ hidden-processes:\ process\ (?P=pid)\ \(orphan\)[^\n]*\n
        \ {4}[^\n]*:\ present\ at\ 0x[^\n]*pid\ (?P=pid),[^\n]*\n .*
        ^\ {4}init_task\.tasks:\ absent .*
        ^[^\n]*step\ 1\ \(nic-down\)\ done .*
        ^[^\n]*step\ 2\ \(pause\)\ done .*
        ^[^\n]*step\ 3\ \(evidence\)\ done .*
        ^[^\n]*step\ 4\ \(resume\)\ done .*
        ^[^\n]*step\ 5\ \(message\)\ done .*
        ^\d+\ records,\ as\ they\ were\ written;""",
        said,
    )
    assert story is not None, said
    carrier = re.findall(r"^\$ cat /sys/class/net/eth0/carrier .*\n(.*)$", said, re.MULTILINE)
    assert carrier == ["1", "0", "1"]  # before, after the response, and after it was undone
    return int(story["pid"])


def check_evidence(folder: Path, pid: int) -> None:
    """This checks the hashes of all files by a stock tool, and that they are of this process."""
    files = {path.name for path in folder.iterdir()} - {"SHA256SUMS"}
    assert files == {"alerts.json", "bundle.json", "records.json", "report.html"}
    checked = subprocess.run(
        ["sha256sum", "-c", "--strict", "SHA256SUMS"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert checked.stdout.count(": OK\n") == len(files)
    (alert,) = json.loads((folder / "alerts.json").read_bytes())
    assert alert["finding"]["evidence"][0]["facts"]["pid"] == pid
    report = (folder / "report.html").read_text()
    assert "<h1>hidden-process on " in report
    assert f"process {pid} (orphan)" in report
