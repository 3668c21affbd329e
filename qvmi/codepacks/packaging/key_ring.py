"""The folder of keys: own ones, those whose signatures are believed, and those that are not any more."""

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import platformdirs

from qvmi.codepacks.packaging.signing_key import MAX_KEY_BYTES, PublicKey, SigningKey, is_key_name
from qvmi.errors import UsageError

__all__ = ["KeyRing", "KeyStanding", "default_key_folder"]

MAX_KEYS: Final = 1024
"""Keys of one folder."""

_PRIVATE: Final = 0o600
_OTHERS_READ: Final = 0o077
_OTHERS_WRITE: Final = 0o022
_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class KeyStanding(StrEnum):
    """This is what is thought of a key."""

    OWN = "own"
    TRUSTED = "trusted"
    REVOKED = "revoked"


def default_key_folder() -> Path:
    """This is the folder of this user's keys: ``keys`` in the folder of qvmi's configuration."""
    return Path(platformdirs.user_config_dir("qvmi")) / "keys"


@dataclass(frozen=True, slots=True)
class KeyRing:
    """This is a folder of keys.

    Args:
        folder: where they are; it need not be there.
    """

    folder: Path

    def new(self, name: str) -> PublicKey:
        """This makes a key of one's own, whose signatures are not believed before it is trusted.

        Raises:
            UsageError: there is one of that name, the name is none, or it cannot be written.
        """
        if not is_key_name(name):
            raise UsageError(f"key name {name!r}: use 1 to 63 of a-z, 0-9 and -")
        key = SigningKey.new(name)
        self._write(KeyStanding.OWN, f"{name}.pem", key.pem)
        self._write(KeyStanding.OWN, f"{name}.pub", key.public.text.encode())
        return key.public

    def signing_key(self, name: str) -> SigningKey:
        """This is a key of one's own.

        Raises:
            UsageError: there is none of that name, or others could have read it.
        """
        if not is_key_name(name):
            raise UsageError(f"key name {name!r}: use 1 to 63 of a-z, 0-9 and -")
        path = self.folder / KeyStanding.OWN / f"{name}.pem"
        data = _read(path, forbidden=_OTHERS_READ)
        if data is None:
            raise UsageError(f"there is no key {name!r} in {path.parent}: qvmi keys new {name}")
        return SigningKey.parse(name, data, where=path)

    def trust(self, path: Path) -> PublicKey:
        """This believes the signatures of a key from now on.

        Args:
            path: of its ``.pub`` file.

        Raises:
            UsageError: it is no key, or it was revoked.
        """
        data = _read(path, forbidden=0)
        if data is None:
            raise UsageError(f"there is no {path}")
        key = PublicKey.parse(data.decode("utf-8", "replace"), where=path)
        if key.id in self.keys(KeyStanding.REVOKED):
            raise UsageError(f"key {key.id} ({key.name}) was revoked: sign with a new one")
        if key.id not in self.keys(KeyStanding.TRUSTED):
            self._write(KeyStanding.TRUSTED, f"{key.id}.pub", key.text.encode())
        return key

    def revoke(self, named: str) -> PublicKey:
        """This believes a key no more, whatever it has signed and whenever.

        Args:
            named: its id, or the name it was trusted under.

        Raises:
            UsageError: no key is trusted or owned that is named so, or several are.
        """
        known = {**self.keys(KeyStanding.OWN), **self.keys(KeyStanding.TRUSTED)}
        found = [key for key in known.values() if named in (key.id, key.name)]
        if len(found) != 1:
            what = f"{len(found)} keys are" if found else "no key is"
            raise UsageError(f"{what} called {named!r}: qvmi keys list tells the ids")
        key = found[0]
        # First this, which alone decides: whoever is killed in between has revoked it.
        if key.id not in self.keys(KeyStanding.REVOKED):
            self._write(KeyStanding.REVOKED, f"{key.id}.pub", key.text.encode())
        (self.folder / KeyStanding.TRUSTED / f"{key.id}.pub").unlink(missing_ok=True)
        return key

    def keys(self, standing: KeyStanding) -> Mapping[str, PublicKey]:
        """These are the keys of one standing, by id. Of one that is revoked no other is true.

        Raises:
            UsageError: a file among them is no key, or others may put keys there.
        """
        return {key.id: key for key in self._read_all(self.folder / standing)}

    def _read_all(self, folder: Path) -> Iterator[PublicKey]:
        try:
            _require_own(folder)
            names = sorted(os.listdir(folder))  # noqa: PTH208 - names alone, before any is opened
        except FileNotFoundError:
            return
        except OSError as error:
            raise UsageError(f"{folder} cannot be read: {error}") from error
        if len(names) > 2 * MAX_KEYS:
            raise UsageError(f"{folder} has {len(names)} files: {MAX_KEYS} keys are the most")
        for name in names:
            if not name.endswith(".pem"):
                path = folder / name
                data = _read(path, forbidden=_OTHERS_WRITE) or b""
                yield PublicKey.parse(data.decode("utf-8", "replace"), where=path)

    def _write(self, standing: KeyStanding, name: str, data: bytes) -> None:
        """This writes a new file, whole or not at all."""
        folder = self.folder / standing
        path = folder / name
        try:
            for made in (self.folder, folder):  # each of this mode, which parents would not be
                made.mkdir(mode=0o700, parents=True, exist_ok=True)
            _require_own(folder)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS
            with open(os.open(path, flags, _PRIVATE), "wb") as file:  # noqa: PTH123 - a descriptor
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError as error:
            if os.path.lexists(path):
                raise UsageError(f"{path} is there already: choose another name") from error
            raise UsageError(f"{error.filename} is no folder: name another one") from error
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error}") from error


def _require_own(folder: Path) -> None:
    """This raises UsageError where another user could put keys into the folder."""
    for path in (folder, folder.parent):
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise UsageError(f"{path} is no folder")
        _require_mode(path, found, _OTHERS_WRITE)


def _require_mode(path: Path, found: os.stat_result, forbidden: int) -> None:
    if found.st_uid not in (0, os.geteuid()):
        raise UsageError(f"{path} belongs to another user: whose keys are these?")
    if found.st_mode & forbidden:
        may = "read" if forbidden & 0o044 else "change"
        raise UsageError(f"others may {may} {path}: chmod go-rwx {path}")


def _read(path: Path, *, forbidden: int) -> bytes | None:
    """This reads a key's file; None where there is none.

    Args:
        path: of the file.
        forbidden: the mode bits that it must not have; with any it must be this user's own.
    """
    try:
        with open(os.open(path, os.O_RDONLY | _FLAGS), "rb") as file:  # noqa: PTH123 - a descriptor
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise UsageError(f"{path} is no file")
            if forbidden:
                _require_mode(path, found, forbidden)
            data = file.read(MAX_KEY_BYTES + 1)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if len(data) > MAX_KEY_BYTES:
        raise UsageError(f"{path} is too long for a key")
    return data
