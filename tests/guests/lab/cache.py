"""The folder that what is expensive to make is kept in: builds that never change once they are finished.

A build is a folder named by what it was made from. It appears whole, under its final name, and is only
read from then on, so that nobody needs a lock to use it; a lock only keeps two processes from making the
same build twice.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs

__all__ = ["Cache", "digest_of", "read_record", "write_atomically"]

DIGEST_LENGTH = 16
"""Hex digits that name a build: 64 bits are ample among a few dozen builds."""

REPLACED_SECONDS = 2 * 3600
"""A build that a newer one replaced is kept that long after its last use: somebody may be reading it,
or a second checkout may take turns with this one."""

FORGOTTEN_SECONDS = 14 * 24 * 3600
"""Any build nobody used for that long goes, as that of a configuration no test has any more."""

ABANDONED_SECONDS = 24 * 3600
"""A build that is unfinished after that long was killed."""


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
    def locked(self, name: str) -> Iterator[None]:
        """Keep other processes from doing the same work at the same time."""
        with (self.folder("locks") / name).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def build(
        self, kind: str, name: str, digest: str, make: Callable[[Path], dict[str, str]]
    ) -> Path:
        """Return the folder of a build, made now if it is not there.

        Args:
            kind: what it is; a folder below the root.
            name: what it is a build of; a newer build of that name replaces it in time.
            digest: everything it is made from.
            make: fills an empty folder, and returns what is worth knowing about the result.
        """
        finished = self.folder(kind) / f"{name}-{digest}"
        if not finished.exists():
            with self.locked(f"{kind}-{name}"):
                if not finished.exists():
                    self._make(kind, finished, make)
                    self._drop_unused(kind, name, finished)
        os.utime(finished)
        return finished

    def builds(self, kind: str) -> tuple[Path, ...]:
        """Return the folders of all finished builds of a kind."""
        return tuple(sorted(record.parent for record in self.folder(kind).glob("*/record.json")))

    def _make(self, kind: str, finished: Path, make: Callable[[Path], dict[str, str]]) -> None:
        scratch = Path(tempfile.mkdtemp(dir=self.folder("unfinished"), prefix=f"{kind}-"))
        try:
            record = make(scratch)
            write_atomically(scratch / "record.json", json.dumps(record, indent=1).encode())
            scratch.rename(finished)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _drop_unused(self, kind: str, name: str, newest: Path) -> None:
        replaced = self.folder(kind).glob(f"{name}-{'?' * DIGEST_LENGTH}")
        _remove_unused((path for path in replaced if path != newest), REPLACED_SECONDS)
        _remove_unused(self.builds(kind), FORGOTTEN_SECONDS)
        _remove_unused(self.folder("unfinished").iterdir(), ABANDONED_SECONDS)


def _remove_unused(folders: Iterable[Path], seconds: float) -> None:
    for folder in folders:
        if time.time() - folder.stat().st_mtime > seconds:
            shutil.rmtree(folder, ignore_errors=True)


def digest_of(*parts: bytes | str) -> str:
    """Return a short name for exactly these parts in this order."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8))
        total.update(data)
    return total.hexdigest()[:DIGEST_LENGTH]


def read_record(path: Path) -> dict[str, str]:
    """Return what a file of names and values says; empty when there is none."""
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return {str(key): str(value) for key, value in record.items()}


def write_atomically(path: Path, data: bytes) -> None:
    """Replace the file so that a reader sees the old bytes or the new ones, never a part."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
        file.write(data)
    Path(file.name).replace(path)
