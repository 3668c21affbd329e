"""The folder of a codepack, read once: what is verified and run afterwards are these bytes alone.

References: openat(2) O_NOFOLLOW, O_NONBLOCK.
"""

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from qvmi.codepacks.manifest import MANIFEST_FILE, Manifest, parse_manifest
from qvmi.errors import CodepackRefused, UsageError
from qvmi.settings import whose_fault

__all__ = ["MAX_FILES", "MAX_FILE_BYTES", "MAX_PACK_BYTES", "SIGNATURE_FILE", "PackFolder"]

SIGNATURE_FILE: Final = "codepack.sig"

MAX_FILES: Final = 256
"""Files and folders of a codepack; it is detection logic, not a distribution."""
MAX_FILE_BYTES: Final = 4 << 20
"""Bytes of one file; the largest module of qvmi itself has some 20 KB."""
MAX_PACK_BYTES: Final = 16 << 20
"""Bytes of all files together, which are all held in memory."""
MAX_DEPTH: Final = 8
"""Folders within folders."""
MAX_SIGNATURE_BYTES: Final = 128 << 10
"""Bytes of the signature's file: so many names and hashes, of the greatest length."""

_PART: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


@dataclass(frozen=True, slots=True)
class PackFolder:
    """This is all that a codepack's folder held at one time.

    Args:
        path: of the folder.
        files: the bytes of each file by its path within, parts joined by ``/``; not the signature's.
        signature: the bytes of the signature's file; None where there is none.
        manifest: what its manifest says.
    """

    path: Path
    files: Mapping[str, bytes]
    signature: bytes | None
    manifest: Manifest

    @classmethod
    def read(cls, path: Path, *, to_sign: bool = False) -> "PackFolder":
        """This reads a folder.

        Every file is opened once, by its own name in a folder that is held open: what somebody does
        to the folder afterwards, or meanwhile, changes nothing of what was read.

        Args:
            path: of the folder.
            to_sign: whether it is to be signed: then nobody else may be able to change it. Whose a
                folder is that was signed does not matter.

        Raises:
            UsageError: there is no such folder.
            CodepackRefused: it cannot be read, has no manifest, or holds something that no codepack
                may hold: links, devices, names that mean something else elsewhere, too much.
            BadSettings: its manifest cannot be right.
        """
        name = path.name or str(path)
        try:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:
            raise UsageError(f"{str(path)!r}: there is no such folder of a codepack") from error
        except OSError as error:
            raise CodepackRefused(name, f"{path} is no folder that can be read: {error}") from error
        try:
            files = dict(_Reading(name, path, to_sign=to_sign).files(folder))
        except OSError as error:
            raise CodepackRefused(name, f"{path} cannot be read: {error}") from error
        finally:
            os.close(folder)
        signature = files.pop(SIGNATURE_FILE, None)
        if MANIFEST_FILE not in files:
            raise CodepackRefused(name, f"{path} has no {MANIFEST_FILE}")
        manifest = parse_manifest(str(path / MANIFEST_FILE), files[MANIFEST_FILE])
        return cls(path, MappingProxyType(files), signature, manifest)


class _Reading:
    """This reads one folder with all below it, and refuses what is too much.

    Args:
        codepack: as refusals name it.
        place: of the folder.
        to_sign: whether nobody else may be able to change it.
    """

    def __init__(self, codepack: str, place: Path, *, to_sign: bool) -> None:
        self._codepack = codepack
        self._place = place
        self._to_sign = to_sign
        self._entries = 0
        self._bytes = 0
        self._folded: dict[str, str] = {}

    def files(self, folder: int, above: tuple[str, ...] = ()) -> Iterator[tuple[str, bytes]]:
        if len(above) > MAX_DEPTH:
            raise self._refused(f"it has folders within folders, more than {MAX_DEPTH} deep")
        self._require_own(folder, "/".join(above))
        with os.scandir(folder) as entries:
            for entry in entries:
                path = self._path(above, entry.name)
                if entry.is_symlink():
                    raise self._refused(f"{path} is a symbolic link: put the file itself there")
                if entry.is_dir(follow_symlinks=False):
                    yield from self._below(folder, (*above, entry.name))
                elif not entry.is_file(follow_symlinks=False):
                    raise self._refused(f"{path} is no file")
                else:
                    yield path, self._read(folder, entry.name, path)

    def _below(self, folder: int, path: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
        below = os.open(path[-1], _FOLDER, dir_fd=folder)
        try:
            yield from self.files(below, path)
        finally:
            os.close(below)

    def _path(self, above: tuple[str, ...], name: str) -> str:
        """This is the path of an entry, whose name means the same everywhere."""
        shown = "/".join((*above, name)).encode("utf-8", "backslashreplace").decode()
        self._entries += 1
        if self._entries > MAX_FILES:
            raise self._refused(f"it has more than {MAX_FILES} files")
        if name in {"__pycache__", ".git"}:
            raise self._refused(f"it has {shown}, which is no part of it: remove that")
        if not _PART.fullmatch(name) or name.endswith("."):
            raise self._refused(f"{shown!r}: a file's name has only A-Z a-z 0-9 . _ -")
        other = self._folded.setdefault(shown.casefold(), shown)
        if other != shown:
            raise self._refused(f"{other} and {shown} differ only in case")
        return shown

    def _read(self, folder: int, name: str, path: str) -> bytes:
        limit = MAX_SIGNATURE_BYTES if path == SIGNATURE_FILE else MAX_FILE_BYTES
        descriptor = os.open(name, _FILE, dir_fd=folder)
        with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor, which no path can stand for
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise self._refused(f"{path} is no file")
            self._require_own(descriptor, path)
            data = file.read(limit + 1)
        self._bytes += len(data)
        if len(data) > limit or self._bytes > MAX_PACK_BYTES:
            most = limit if len(data) > limit else MAX_PACK_BYTES
            raise self._refused(f"{path} is too long: {most} bytes are the most")
        return data

    def _require_own(self, descriptor: int, path: str) -> None:
        """This refuses what others may have changed, where it is to be signed."""
        fault = whose_fault(self._place / path, os.fstat(descriptor)) if self._to_sign else ""
        if fault:
            raise self._refused(f"{fault}; what others may change is not signed")

    def _refused(self, problem: str) -> CodepackRefused:
        return CodepackRefused(self._codepack, problem)
