"""An image is what QEMU's own tools say it is."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from qvmi.disk.image import Effort, FileImage, ImageBytes
from qvmi.disk.qcow2 import Qcow2Image
from qvmi.errors import CorruptDisk
from tests.unit.disk.images import Image, ran

SIZE: Final = 3 << 20
STEP: Final = 99_999
OPTIONS: Final = {
    "plain": ("compat=1.1",),
    "old": ("compat=0.10",),
    "small clusters": ("cluster_size=512",),
    "subclusters": ("extended_l2=on",),
}


def whole(*images: Image) -> bytes:
    """This is all that the guest sees of a chain of images."""
    disk: ImageBytes | None = None
    with ExitStack() as stack:
        effort = Effort()
        for form, path in reversed(images):
            file = FileImage(stack.enter_context(path.open("rb")).fileno(), effort)
            disk = file if form == "raw" else Qcow2Image(file, disk, effort)
        assert disk is not None
        size = disk.size
        return b"".join(disk.read(at, min(STEP, size - at)) for at in range(0, size, STEP))


def as_qemu_reads(image: Path) -> bytes:
    raw = image.with_suffix(".as-raw")
    ran("qemu-img", "convert", "-O", "raw", image, raw)
    return raw.read_bytes()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """This is a raw image that backs others, in their folder; its size is no multiple of anything."""
    path = tmp_path / "base.raw"
    path.write_bytes(os.urandom(SIZE - 512))
    return path


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_chain_reads_as_qemu_reads_it(
    tmp_path: Path, base: Path, options: tuple[str, ...]
) -> None:
    middle, top = tmp_path / "middle.qcow2", tmp_path / "top.qcow2"
    create = ("qemu-img", "create", "-q", "-f", "qcow2", "-o", ",".join(options))
    ran(*create, "-b", "base.raw", "-F", "raw", middle, str(SIZE))
    ran("qemu-io", "-c", "write -P 7 70k 90k", "-c", "write -P 9 1M 300", middle)
    ran(*create, "-b", "middle.qcow2", "-F", "qcow2", top, str(SIZE + (1 << 20)))
    ran("qemu-io", "-c", "write -P 1 100k 1000", "-c", "write -P 2 3500k 20k", top)
    if "compat=0.10" not in options:
        ran("qemu-io", "-c", "write -z 64k 64k", top)
    read = whole(("qcow2", top), ("qcow2", middle), ("raw", base))
    assert read == as_qemu_reads(top)


def test_compressed_clusters_are_read(tmp_path: Path) -> None:
    raw, packed = tmp_path / "raw", tmp_path / "packed.qcow2"
    raw.write_bytes(b"".join(bytes([number % 251]) * 700 for number in range(5000)))
    ran("qemu-img", "convert", "-c", "-O", "qcow2", raw, packed)
    assert whole(("qcow2", packed)) == as_qemu_reads(packed)


def test_snapshots_in_an_image_are_not_what_is_read(tmp_path: Path) -> None:
    image = tmp_path / "image.qcow2"
    ran("qemu-img", "create", "-q", "-f", "qcow2", image, "1M")
    ran("qemu-io", "-c", "write -P 1 0 64k", image)
    ran("qemu-img", "snapshot", "-c", "before", image)
    ran("qemu-io", "-c", "write -P 2 0 64k", image)
    assert whole(("qcow2", image))[:4] == b"\2\2\2\2"


def test_a_raw_image_that_begins_as_a_qcow2_image_stays_raw(tmp_path: Path) -> None:
    secret, forged, top = tmp_path / "secret", tmp_path / "forged.raw", tmp_path / "top.qcow2"
    secret.write_bytes(b"a secret of the host".ljust(65536))
    ran("qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", forged)
    ran("qemu-img", "create", "-q", "-f", "qcow2", "-b", forged, "-F", "raw", top)
    written = forged.read_bytes()
    assert whole(("raw", forged)) == written
    assert whole(("qcow2", top), ("raw", forged))[: len(written)] == written


def test_an_image_without_the_one_that_it_names_is_not_read(tmp_path: Path, base: Path) -> None:
    top = tmp_path / "top.qcow2"
    ran("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top)
    with pytest.raises(CorruptDisk, match="that QEMU has not"):
        whole(("qcow2", top))


def test_data_in_another_file_is_not_read(tmp_path: Path) -> None:
    image = tmp_path / "image.qcow2"
    options = f"data_file={tmp_path}/data"
    ran("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, image, "1M")
    with pytest.raises(CorruptDisk, match="in another file"):
        whole(("qcow2", image))


@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        (79, 2, "marked the image as corrupt"),
        (79, 0x40, "unknown features 0x40"),
        (36, 0x40, "a disk of 1048576 bytes"),
        (24, 0x40, "a disk of "),
        (23, 40, "clusters of 2\\^40 bytes"),
        (35, 1, "encrypted"),
        (0, 0, "does not begin as a qcow2 image"),
    ],
)
def test_an_image_that_cannot_be_is_not_read(tmp_path: Path, at: int, value: int, why: str) -> None:
    image = tmp_path / "image.qcow2"
    ran("qemu-img", "create", "-q", "-f", "qcow2", image, "1M")
    with image.open("r+b") as file:
        file.seek(at)
        file.write(bytes([value]))
    with pytest.raises(CorruptDisk, match=why):
        whole(("qcow2", image))
