"""The folders that outlive a manager, whatever a codepack has put there."""

import os
from pathlib import Path

import pytest

from qvmi.manager.home import Home

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
