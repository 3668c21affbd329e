"""The code of a codepack is handed over as it was verified, in memory that nobody can change any more."""

import mmap
import os
from pathlib import Path

import pytest

from qvmi.codepacks.packaging.pack_loader import load_bytes
from qvmi.errors import BadMessage
from qvmi.manager.pack_code import received, sealed
from tests.unit.codepacks.signed_packs import Workshop


def test_what_was_verified_arrives_whole_whatever_lies_in_the_folder_by_then(
    tmp_path: Path,
) -> None:
    workshop = Workshop.at(tmp_path)
    verified = workshop.verify()
    descriptor = sealed(verified)
    (workshop.folder / "detector.py").write_text("raise SystemExit")
    folder = received(descriptor)
    assert dict(folder.files) == dict(verified.folder.files)
    assert folder.manifest == verified.folder.manifest
    assert load_bytes(folder, interval_s=0.5).interval_s == 0.5


def test_nobody_can_change_it_any_more(tmp_path: Path) -> None:
    descriptor = sealed(Workshop.at(tmp_path).verify())
    again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
    size = os.fstat(descriptor).st_size
    try:
        for number in (descriptor, again):
            with pytest.raises(PermissionError):
                os.pwrite(number, b"x", 0)
            with pytest.raises(PermissionError):
                os.ftruncate(number, size + 1)
            with pytest.raises(PermissionError):
                os.ftruncate(number, 0)
            with pytest.raises(PermissionError):
                mmap.mmap(number, size, access=mmap.ACCESS_WRITE)
    finally:
        os.close(again)
        os.close(descriptor)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x82\xa4path\xa1x\xa5files\x90"])
def test_what_is_no_codepack_is_refused(data: bytes) -> None:
    descriptor = os.memfd_create("test")
    os.write(descriptor, data)
    with pytest.raises(BadMessage):
        received(descriptor)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(descriptor)
