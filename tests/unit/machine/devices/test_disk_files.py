"""Images are opened by the descriptors of whoever has them open, here this very process, or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qvmi.errors import DiskRefused
from qvmi.machine.devices.disk_files import DiskFiles, OpenedImage
from qvmi.qmp.block import BlockImage

US = os.getpid()


@contextmanager
def opened(name: str | Path, qemu: int | None = US) -> Iterator[OpenedImage]:
    files = DiskFiles.open([BlockImage("raw", str(name))], qemu)
    try:
        yield files.images[0]
    finally:
        files.close()


def content(image: OpenedImage) -> bytes:
    return os.pread(image.descriptor, 100, 0)


def test_a_file_is_opened_for_reading_alone(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"content")
    with path.open("r+b"), opened(path) as image:
        assert content(image) == b"content"
        assert image.held_by_qemu
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(image.descriptor, b"x", 0)


def test_a_relative_name_is_seen_from_where_the_process_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "image").write_bytes(b"content")
    monkeypatch.chdir(tmp_path)
    with Path("image").open("rb"), opened("image") as image:
        assert content(image) == b"content"


def test_a_file_that_was_replaced_is_the_one_that_is_held(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"the first")
    with path.open("rb"):
        path.unlink()
        path.write_bytes(b"the second")
        with opened(path) as image:
            assert content(image) == b"the first"


def test_a_file_that_the_process_has_not_open_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"content")
    with pytest.raises(DiskRefused, match="no such file open"), opened(path):
        pass


def test_without_a_process_a_whole_path_is_opened_and_said_to_be_uncertain(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"content")
    with opened(path, qemu=None) as image:
        assert content(image) == b"content"
        assert not image.held_by_qemu
    with pytest.raises(DiskRefused, match="not known here"), opened("image", qemu=None):
        pass


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/null"), tmp_path / "nothing"):
        with pytest.raises(DiskRefused), opened(path, qemu=None):
            pass


@pytest.mark.parametrize("name", ["/a\0b", "/\ud800"], ids=["NUL", "surrogate"])
@pytest.mark.parametrize("qemu", [US, None], ids=["QEMU's", "by name"])
def test_a_name_that_no_file_can_have_is_refused(name: str, qemu: int | None) -> None:
    with pytest.raises(DiskRefused), opened(name, qemu):
        pass


def test_one_image_that_cannot_be_opened_leaves_none_open(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"content")
    with path.open("rb"):
        before = len(list(Path("/proc/self/fd").iterdir()))
        with pytest.raises(DiskRefused):
            DiskFiles.open([BlockImage("raw", str(path)), BlockImage("raw", "/nothing")], US)
        assert len(list(Path("/proc/self/fd").iterdir())) == before
