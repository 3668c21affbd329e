"""The bundle of evidence: files, and lists of their hashes that stock tools check.

References: sha256sum(1), whose lists ``SHA256SUMS`` follows.
"""

import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from qvmi.errors import UsageError
from qvmi.machine.new_file import NewFile

__all__ = ["BUNDLE", "SUMS", "FileSum", "write_bundle"]

SUMS: Final = "SHA256SUMS"
BUNDLE: Final = "bundle.json"

MAX_FILES: Final = 256
"""Files of one bundle; a run makes five."""

_PIECE: Final = 1 << 20


class FileSum(msgspec.Struct, frozen=True):
    """This is one file of a bundle.

    Args:
        name: of the file, in the bundle's folder.
        size: in bytes.
        sha256: of its bytes, in hexadecimal.
    """

    name: str
    size: int
    sha256: str


class _Bundle(msgspec.Struct, frozen=True):
    version: int
    run: str
    vm: str
    made: float
    files: tuple[FileSum, ...]


def write_bundle(
    folder: Path, contents: Mapping[str, bytes], *, run: str, vm: str
) -> tuple[FileSum, ...]:
    """This writes files beside those that are there, and the lists of all of them.

    Args:
        folder: where.
        contents: by name.
        run: which this is the evidence of.
        vm: the machine's name on the bus.

    Raises:
        UsageError: something cannot be written, or read again.
    """
    for name, content in contents.items():
        _write(folder / name, content)
    try:
        found = sorted(path for path in folder.iterdir() if path.name not in (SUMS, BUNDLE))
        if len(found) > MAX_FILES:
            raise UsageError(f"{folder} has {len(found)} files, which are not of one run")
        files = tuple(_sum(path) for path in found)
        bundle = _Bundle(1, run, vm, time.time(), files)
        _write(folder / BUNDLE, msgspec.json.format(msgspec.json.encode(bundle)) + b"\n")
        listed = (*files, _sum(folder / BUNDLE))
        lines = "".join(f"{one.sha256}  {one.name}\n" for one in listed)
        _write(folder / SUMS, lines.encode())
    except OSError as error:
        raise UsageError(f"{folder}: evidence cannot be kept: {error.strerror}") from error
    return files


def _write(path: Path, content: bytes) -> None:
    with NewFile(path) as file:
        file.write(0, content)
        with file.writing():
            os.fsync(file.descriptor)
        file.put_in_place()


def _sum(path: Path) -> FileSum:
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            size += len(piece)
    return FileSum(path.name, size, digest.hexdigest())
