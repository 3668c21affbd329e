"""What codepacks say, kept in a file of lines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qvmi.codepacks.alert_file import AlertFile
from qvmi.errors import UsageError

LINE = b'{"kind":"alert"}'

FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from qvmi.codepacks.alert_file import AlertFile
from qvmi.errors import UsageError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
with AlertFile(Path(sys.argv[1])) as file:
    file.add(b'{"number":1}')
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    for number in (2, 3):
        try:
            file.add(b'{"number":%d}' % number)
        except UsageError as error:
            print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    file.add(b'{"number":4}')
"""

UNFINISHED = """
import resource, signal, sys
from pathlib import Path
from qvmi.codepacks.alert_file import AlertFile
from qvmi.errors import UsageError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size,) * 2)
try:
    AlertFile(path)
except UsageError as error:
    print(error)
"""


def run(script: str, path: Path) -> str:
    """This runs a script whose process cannot make files as large as it likes."""
    command = (sys.executable, "-c", script, str(path))
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_appends_and_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "alerts.log"
    for _ in range(2):
        with AlertFile(path) as file:
            file.add(LINE)
    assert path.read_bytes() == (LINE + b"\n") * 2
    assert path.stat().st_mode & 0o777 == 0o600


def test_goes_on_in_a_new_file_where_the_old_one_was_moved_away(tmp_path: Path) -> None:
    path, old = tmp_path / "alerts.log", tmp_path / "alerts.log.1"
    with AlertFile(path) as file:
        file.add(LINE)
        path.rename(old)
        file.add(LINE)
        path.unlink()
        path.write_bytes(b"")
        file.add(LINE)
        os.truncate(path, 0)
        file.add(LINE)
    assert old.read_bytes() == path.read_bytes() == LINE + b"\n"


def test_on_a_full_disk_no_part_of_a_line_stays_and_what_is_lost_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "alerts.log"
    first, second = run(FULL_DISK, path).splitlines()
    assert "1 messages could not be written" in first
    assert "2 messages could not be written" in second
    kept = lines(path)
    assert [line.get("number") for line in kept] == [1, None, 4]
    assert (kept[1]["kind"], kept[1]["lost"]) == ("lost", 2)


def test_a_line_that_somebody_did_not_finish_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "alerts.log"
    path.write_bytes(LINE + b"\n" + LINE[:5])
    with AlertFile(path) as file:
        file.add(LINE)
    assert path.read_bytes().splitlines()[2] == LINE


def test_a_full_disk_on_which_such_a_line_cannot_be_ended_is_told(tmp_path: Path) -> None:
    path = tmp_path / "alerts.log"
    path.write_bytes(LINE[:5])
    assert "cannot be used: File too large" in run(UNFINISHED, path)


def test_two_programs_do_not_write_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "alerts.log"
    with AlertFile(path), pytest.raises(UsageError, match="another program"):
        AlertFile(path)


@pytest.mark.parametrize("kind", ["folder", "link", "pipe", "missing folder"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "alerts.log"
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path = tmp_path / "none" / "alerts.log"
    with pytest.raises(UsageError):
        AlertFile(path)
