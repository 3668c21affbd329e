"""Images to read, made by other programs, and a folder of this host as what is in them."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from qvmi.disk.disk import ImageFile, VirtualDisk

__all__ = ["MANY", "Image", "file_system", "opened", "ran", "read_whole", "tree"]

MANY: Final = 1000
"""Files of one folder: of several blocks, with an index."""

Image = tuple[str, Path]
"""A format, and the file."""


def ran(*command: str | Path, given: str = "") -> str:
    """This runs a program, which may lie where only root's PATH leads, and gives what it prints."""
    return subprocess.run(
        command,
        input=given,
        env=os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "LC_ALL": "C.UTF-8"},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout


def tree(folder: Path) -> Path:
    """This makes a folder with one of each kind of thing."""
    (folder / "etc").mkdir(parents=True)
    (folder / "etc/passwd").write_bytes(b"root:x:0:0\n")
    (folder / "etc/passwd").chmod(0o640)
    (folder / "empty").touch()
    (folder / "large").write_bytes(os.urandom(3_000_001))
    with (folder / "holes").open("wb") as holes:
        for at in (0, 1 << 20, (40 << 20) + 17):
            holes.seek(at)
            holes.write(os.urandom(5000))
        holes.truncate(44 << 20)
    (folder / "to passwd").symlink_to("etc/passwd")
    (folder / "etc/back").symlink_to("/etc/../large")
    (folder / "far").symlink_to("x" * 200)
    (folder / "round").symlink_to("round")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe name")).write_bytes(b"not UTF-8")
    os.mkfifo(folder / "fifo")
    many = folder / "many"
    many.mkdir()
    for number in range(MANY):
        (many / f"file-{number:05}-{'x' * (number % 40)}").touch()
    return folder


def file_system(image: Path, source: Path | None, *options: str, size: str = "96M") -> Path:
    """This makes a file system with what is in a folder."""
    ran("truncate", "-s", size, image)
    of = ("-d", source) if source is not None else ()
    ran("mke2fs", "-q", "-F", *options, *of, image)
    return image


@contextmanager
def opened(*images: Image, volume: int | None = None) -> Iterator[VirtualDisk]:
    """This opens a chain of images, the one that is written to first."""
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("rb")) for _, path in images]
        chain = [
            ImageFile(form, file.fileno()) for (form, _), file in zip(images, files, strict=True)
        ]
        yield VirtualDisk(chain, volume=volume)


def read_whole(*images: Image, path: str | bytes, volume: int | None = None) -> bytes:
    """This is the content of a file."""
    content = bytearray()
    with opened(*images, volume=volume) as disk:
        file = disk.read(os.fsencode(path))
        for at, data in file.parts():
            content.extend(bytes(at - len(content)) + data)
    return bytes(content.ljust(file.facts.size, b"\0"))
