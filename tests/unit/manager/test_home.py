"""The folders that outlive a manager, whatever a codepack has put there."""

import os
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

from qvmi.errors import UsageError
from qvmi.manager.home import MAX_ENTRIES, Home

NOBODY = 65534


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
def test_a_codepack_is_given_its_own_files_and_nothing_that_its_links_lead_to(
    tmp_path: Path,
) -> None:
    home = Home(tmp_path / "state", "vm")
    folder = home.of_pack("pack", NOBODY, NOBODY)
    secret = tmp_path / "secret"
    secret.touch(0o600)
    (folder / "hard").hardlink_to(secret)
    (folder / "soft").symlink_to(secret)
    (folder / "own").touch()
    (folder / "below").mkdir()
    home.of_pack("pack", NOBODY - 1, NOBODY)
    assert secret.stat().st_uid == 0
    assert {one.name for one in folder.iterdir() if one.lstat().st_uid == NOBODY - 1} == {
        "own",
        "below",
    }
    assert folder.stat().st_uid == NOBODY - 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
def test_a_codepack_cannot_enter_the_folders_of_those_that_had_its_uid_before() -> None:
    # Below pytest's own folders nobody but root gets at all.
    with tempfile.TemporaryDirectory(prefix="qvmi-home-") as place:
        state = Path(place)
        state.chmod(0o711)
        home = Home(state, "vm")
        before = home.of_pack("before", NOBODY, NOBODY)
        of_another = Home(state, "another").of_pack("before", NOBODY, NOBODY)
        running = Home(state, "another").of_pack("running", NOBODY - 1, NOBODY)
        before.chmod(0o777)
        assert [can_enter(folder) for folder in (before, of_another)] == [True, True]
        home.take_back((NOBODY, None))
        assert [can_enter(folder) for folder in (before, of_another)] == [False, False]
        assert running.stat().st_uid == NOBODY - 1
        assert can_enter(home.of_pack("now", NOBODY, NOBODY))


def test_a_folder_that_its_codepack_has_filled_or_locked_is_refused_or_opened(
    tmp_path: Path,
) -> None:
    home = Home(tmp_path / "state", "vm")
    folder = home.of_pack("pack", None, None)
    for number in range(MAX_ENTRIES):
        (folder / str(number)).touch()
    folder.chmod(0)
    assert home.of_pack("pack", None, None) == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (folder / "more").touch()
    with pytest.raises(UsageError, match=f"more than {MAX_ENTRIES} files"):
        home.of_pack("pack", None, None)
    assert home.of_pack("pack", None, None, contents=False) == folder, "what is tried there is not"


def can_enter(folder: Path) -> bool:
    """This asks a program that runs as that uid."""
    command = ("setpriv", f"--reuid={NOBODY}", "--clear-groups", "test", "-w", folder)
    return subprocess.run(command, check=False).returncode == 0
