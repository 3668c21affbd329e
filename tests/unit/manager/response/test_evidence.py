"""A bundle's lists are those of sha256sum, and cover every file."""

import json
import subprocess
from pathlib import Path

import pytest

from qvmi.errors import UsageError
from qvmi.manager.response.evidence import MAX_FILES, write_bundle


def test_sha256sum_checks_every_file_and_finds_one_that_was_changed(tmp_path: Path) -> None:
    (tmp_path / "guest.core").write_bytes(b"core" * 1000)
    write_bundle(tmp_path, {"alerts.json": b"[]"}, run="run-1", vm="web")
    check = ["sha256sum", "-c", "--strict", "SHA256SUMS"]
    told = subprocess.run(check, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert sorted(told.splitlines()) == ["alerts.json: OK", "bundle.json: OK", "guest.core: OK"]
    bundle = json.loads((tmp_path / "bundle.json").read_bytes())
    assert [one["name"] for one in bundle["files"]] == ["alerts.json", "guest.core"]
    assert bundle["files"][1]["size"] == 4000
    (tmp_path / "guest.core").write_bytes(b"core" * 999 + b"lies")
    assert subprocess.run(check, cwd=tmp_path, check=False, capture_output=True).returncode != 0


def test_evidence_written_again_covers_what_has_come_since(tmp_path: Path) -> None:
    write_bundle(tmp_path, {"alerts.json": b"[]"}, run="run-1", vm="web")
    (tmp_path / "later").write_bytes(b"x")
    files = write_bundle(tmp_path, {"alerts.json": b"[1]"}, run="run-1", vm="web")
    assert [one.name for one in files] == ["alerts.json", "later"]
    subprocess.run(
        ["sha256sum", "-c", "--quiet", "--strict", "SHA256SUMS"], cwd=tmp_path, check=True
    )


def test_a_link_in_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(UsageError, match="evidence cannot be kept"):
        write_bundle(tmp_path, {}, run="run-1", vm="web")


def test_a_folder_that_is_not_of_one_run_is_refused(tmp_path: Path) -> None:
    for number in range(MAX_FILES + 1):
        (tmp_path / str(number)).touch()
    with pytest.raises(UsageError, match="not of one run"):
        write_bundle(tmp_path, {}, run="run-1", vm="web")
