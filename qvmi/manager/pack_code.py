"""The code of a codepack as its process is given it: the bytes that were verified, which nobody can change.

References: memfd_create(2), fcntl(2) F_ADD_SEALS.
"""

import fcntl
import os
from pathlib import Path
from types import MappingProxyType
from typing import Final

import msgspec

from qvmi.codepacks.manifest import MANIFEST_FILE, parse_manifest
from qvmi.codepacks.packaging.pack_folder import MAX_FILES, MAX_PACK_BYTES, PackFolder
from qvmi.codepacks.packaging.pack_signature import VerifiedPack
from qvmi.errors import BadMessage, CodepackError

__all__ = ["received", "sealed"]

_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

MAX_BYTES: Final = MAX_PACK_BYTES + MAX_FILES * 1024
"""Bytes of all: the files, and their paths of at most nine parts of 64 letters each."""


class _Code(msgspec.Struct, frozen=True):
    """This is what is handed over."""

    path: str
    files: dict[str, bytes]


def sealed(pack: VerifiedPack) -> int:
    """This puts a codepack into memory that cannot be changed any more.

    Returns:
        Its descriptor, which is the caller's to close.

    Raises:
        CodepackError: there is no memory for it.
    """
    folder = pack.folder
    data = msgspec.msgpack.encode(_Code(str(folder.path), dict(folder.files)))
    try:
        descriptor = os.memfd_create("qvmi-codepack", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(data)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        name = folder.manifest.name
        raise CodepackError(name, f"its code cannot be handed over: {error}") from error
    return descriptor


def received(descriptor: int) -> PackFolder:
    """This reads what was handed over, and closes it.

    Raises:
        BadMessage: it is no codepack.
        BadSettings: its manifest cannot be right.
    """
    try:
        with os.fdopen(descriptor, "rb") as file:
            file.seek(0)  # the place in it is shared with whoever wrote it
            code = msgspec.msgpack.decode(file.read(MAX_BYTES), type=_Code)
    except (OSError, msgspec.MsgspecError) as error:
        raise BadMessage(f"no codepack was handed over: {error}") from error
    path = Path(code.path)
    manifest = parse_manifest(str(path / MANIFEST_FILE), code.files.get(MANIFEST_FILE, b""))
    return PackFolder(path, MappingProxyType(code.files), None, manifest)
