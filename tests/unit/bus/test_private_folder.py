"""The folder of one run."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from qvmi.bus.private_folder import private_folder

HOLDER = """
import sys
from qvmi.bus.private_folder import private_folder
with private_folder() as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Gives this process and its children an empty folder for temporary files."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def held_by_another_process() -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_only_its_owner_may_enter_whatever_the_umask() -> None:
    before = os.umask(0)
    try:
        with private_folder() as folder:
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    finally:
        os.umask(before)


def test_goes_with_what_is_in_it_when_the_block_ends(temporary: Path) -> None:
    with private_folder() as folder:
        (folder / "file").write_text("x")
        assert list(temporary.iterdir()) == [folder]
    assert list(temporary.iterdir()) == []


def test_a_folder_of_a_killed_program_is_removed_by_the_next(temporary: Path) -> None:
    process, orphan = held_by_another_process()
    (orphan / "secret").write_text("x")
    end(process)
    assert process.returncode == -signal.SIGKILL
    assert orphan.is_dir()
    with private_folder() as folder:
        assert list(temporary.iterdir()) == [folder]


def test_a_folder_in_use_is_left_alone() -> None:
    process, theirs = held_by_another_process()
    try:
        with private_folder():
            assert theirs.is_dir()
    finally:
        end(process)


def test_what_only_looks_like_a_folder_of_ours_is_left_alone(temporary: Path) -> None:
    link = temporary / "qvmi-bus-link"
    link.symlink_to(temporary)
    open_to_others = temporary / "qvmi-bus-open"
    open_to_others.mkdir(mode=0o755)
    (open_to_others / "owner.lock").touch()
    being_made = temporary / "qvmi-bus-new"
    being_made.mkdir(mode=0o700)
    with private_folder():
        assert link.is_symlink()
        assert open_to_others.is_dir()
        assert being_made.is_dir()


def test_a_folder_whose_maker_was_killed_before_it_was_locked_is_removed_in_the_end(
    temporary: Path,
) -> None:
    forgotten = temporary / "qvmi-bus-forgotten"
    forgotten.mkdir(mode=0o700)
    (forgotten / "owner.lock.new").touch()
    os.utime(forgotten, (0, 0))
    with private_folder() as folder:
        assert list(temporary.iterdir()) == [folder]


def test_folders_of_others_do_not_keep_ours_from_being_removed(temporary: Path) -> None:
    crowd = [temporary / f"qvmi-bus-{number:03}" for number in range(300)]
    for one in crowd:
        one.mkdir(mode=0o755)
    process, orphan = held_by_another_process()
    end(process)
    with private_folder():
        assert not orphan.exists()
        assert all(one.is_dir() for one in crowd)
