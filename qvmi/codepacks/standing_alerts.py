"""The alerts of one codepack that stand, in a file: who is started again does not raise them again.

A message about one is out before the file says so: who is killed in between raises it twice, and never not.
"""

import logging
import os
from pathlib import Path
from typing import Final

import msgspec

from qvmi.codepacks.confirmation import MAX_KEYS, Confirmed
from qvmi.codepacks.look import MAX_FINDING_BYTES
from qvmi.errors import UsageError

__all__ = ["StandingAlerts"]

_MAX_BYTES: Final = MAX_KEYS * (MAX_FINDING_BYTES + 1024)
"""Bytes of the file: as many findings as are followed at a time, each of the greatest size."""
_MODE: Final = 0o600
"""What was found are the guest's own bytes: nobody else's business."""
_VERSION: Final = 1

_log: Final = logging.getLogger(__name__)


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """This is what the file holds."""

    version: int
    vm: str
    codepack: str
    standing: tuple[Confirmed, ...]


class StandingAlerts:
    """This is the file of one codepack's standing alerts.

    Args:
        path: where; its folder is made if there is none.
        vm: the machine's name on the bus; what the file says of another is not believed.
        codepack: whose alerts.
    """

    def __init__(self, path: Path, *, vm: str, codepack: str) -> None:
        self._path = path
        self._vm = vm
        self._codepack = codepack

    def load(self) -> tuple[Confirmed, ...]:
        """These are the alerts that stood when they were saved last.

        A file that is damaged is told of, and taken for none: then they are raised again.

        Raises:
            UsageError: the file cannot be read.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise UsageError(f"{self._path}: cannot be used: {error.strerror}") from error
        try:
            kept = msgspec.json.decode(data, type=_Kept)
        except (msgspec.MsgspecError, UsageError, UnicodeDecodeError, RecursionError) as error:
            _log.warning("%s is damaged; what stands is raised again: %s", self._path, error)
            return ()
        if (kept.version, kept.vm, kept.codepack) != (_VERSION, self._vm, self._codepack):
            _log.warning("%s is of another codepack or machine, or of a newer qvmi", self._path)
            return ()
        return kept.standing[:MAX_KEYS]

    def save(self, standing: tuple[Confirmed, ...]) -> None:
        """This replaces the file, whole or not at all.

        Raises:
            UsageError: it cannot be written, as on a full disk; the old one is still there.
        """
        data = msgspec.json.encode(_Kept(_VERSION, self._vm, self._codepack, standing))
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            with open(os.open(new, flags, _MODE), "wb") as file:  # noqa: PTH123 - a descriptor
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._path)
        except OSError as error:
            raise UsageError(f"{self._path}: cannot be written: {error.strerror}") from error
