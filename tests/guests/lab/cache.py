"""The folder that what is expensive to make is kept in, with locks so that two processes can build at once."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs

__all__ = ["Cache", "digest_of", "forget", "read_record", "write_atomically", "write_record"]

DIGEST_LENGTH = 16
"""Hex digits that name a build: 64 bits are ample among a few dozen builds."""


@dataclass(frozen=True, slots=True)
class Cache:
    """This is one folder of the user's, shared by every checkout and process."""

    root: Path

    @classmethod
    def of_user(cls) -> "Cache":
        """Take QVMI_GUEST_CACHE, else the user's cache folder."""
        chosen = os.environ.get("QVMI_GUEST_CACHE")
        root = Path(chosen) if chosen else platformdirs.user_cache_path("qvmi") / "guests"
        root.mkdir(parents=True, exist_ok=True)
        return cls(root.resolve())

    def folder(self, *names: str) -> Path:
        """Return the folder of that name below the root, made if need be."""
        path = self.root.joinpath(*names)
        path.mkdir(parents=True, exist_ok=True)
        return path

    @contextmanager
    def locked(self, name: str, *, shared: bool = False) -> Iterator[None]:
        """Hold a lock that other processes see: shared to use what is there, else to build it."""
        path = self.folder("locks") / name
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            yield


def digest_of(*parts: bytes | str) -> str:
    """Return a short name for exactly these parts in this order."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8))
        total.update(data)
    return total.hexdigest()[:DIGEST_LENGTH]


def read_record(folder: Path) -> dict[str, str]:
    """Return what was written about a finished build; empty when there is none, or half of one."""
    try:
        record = json.loads((folder / "record.json").read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return {str(key): str(value) for key, value in record.items()}


def write_record(folder: Path, record: dict[str, str]) -> None:
    """Declare the build in this folder finished: written last, at once or not at all."""
    write_atomically(folder / "record.json", (json.dumps(record, indent=1) + "\n").encode())


def write_atomically(path: Path, data: bytes) -> None:
    """Replace the file so that a reader sees the old bytes or the new ones, never a part."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
        file.write(data)
    Path(file.name).replace(path)


def forget(folder: Path) -> None:
    """Remove a build, its record first so that nobody takes the rest for finished."""
    (folder / "record.json").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
