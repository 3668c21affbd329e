"""The journal of a responder: what it was doing when it was killed, and what can be undone.

Lines of JSON, each on the disk before what it tells of is done. A part of a line at the end is of a crash,
and was never acted upon.

References: write(2) O_APPEND, fsync(2), flock(2).
"""

import fcntl
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from qvmi.codepacks.alert import Alert
from qvmi.errors import UsageError
from qvmi.manager.response.episodes import AlertKey, key_of
from qvmi.manager.response.records import Outcome

__all__ = ["Journal", "Run", "Undo"]

MAX_JOURNAL: Final = 64 << 20
"""Bytes of a journal that is read; a run writes some ten KiB."""

COMPACT_FROM: Final = 16 << 20
"""Bytes from which on a journal is written anew with what is kept of it, when a run begins."""

MAX_GROWN: Final = MAX_JOURNAL - (16 << 20)
"""Bytes beyond which no run begins, so that those that have begun can be noted to their end."""

MAX_KEPT: Final = 8 << 20
"""Bytes of the runs that are kept then; the oldest that are over go first."""

MAX_RUNS: Final = 1000
"""Runs that are kept when a journal is opened or written anew; the oldest that are over go first."""

_MODE: Final = 0o600
_NAMES_OF: Final = {"nic-up": 1, "write": 0, "delete-snapshot": 2}
"""What undoes a step, with how many names it has."""
_HEXADECIMAL: Final = re.compile(r"([0-9a-f]{2}){0,64}")


class Undo(msgspec.Struct, frozen=True, kw_only=True):
    """This is how a step is undone.

    Args:
        word: what undoes it: ``nic-up``, ``write`` or ``delete-snapshot``.
        names: of NICs, or of a device and its snapshot.
        address: where bytes were written.
        there: in hexadecimal, what must be there now for the undo to be right.
        before: in hexadecimal, what was there before.

    Raises:
        UsageError: nothing is undone so.
    """

    word: str
    names: tuple[str, ...] = ()
    address: int = 0
    there: str = ""
    before: str = ""

    def __post_init__(self) -> None:
        if _NAMES_OF.get(self.word) != len(self.names):
            raise UsageError(f"{self.word!r} of {len(self.names)} names undoes nothing")
        if not (_HEXADECIMAL.fullmatch(self.there) and _HEXADECIMAL.fullmatch(self.before)):
            raise UsageError("bytes to be written back are no hexadecimal")


class _Began(msgspec.Struct, frozen=True, tag="began"):
    run: str
    playbook: str
    alerts: tuple[Alert, ...]
    at: float = 0.0


class _StepBegan(msgspec.Struct, frozen=True, tag="step"):
    run: str
    step: int
    undo: tuple[Undo, ...] = ()


class _StepEnded(msgspec.Struct, frozen=True, tag="ended"):
    run: str
    step: int
    outcome: Outcome


class _Over(msgspec.Struct, frozen=True, tag="over"):
    run: str
    undone: bool = False


class _Cleared(msgspec.Struct, frozen=True, tag="cleared"):
    run: str
    codepack: str
    key: str


_Line = _Began | _StepBegan | _StepEnded | _Over | _Cleared


class Run(msgspec.Struct, kw_only=True):
    """This is a run of a playbook as the journal has it.

    Args:
        name: of the run.
        playbook: which one.
        alerts: what led to it.
        begun: the last step that was begun.
        ended: what became of steps, by number.
        undo: how what was done is undone, in the order in which it was done.
        over: whether it has ended.
        undone: whether it was undone.
        at: when it began, seconds since the Unix epoch; 0 where an older qvmi has not noted that.
        cleared: which of its alerts were cleared since, by what they are known by.
    """

    name: str
    playbook: str
    alerts: tuple[Alert, ...]
    begun: int = 0
    ended: dict[int, Outcome] = msgspec.field(default_factory=dict)
    undo: list[tuple[int, Undo]] = msgspec.field(default_factory=list)
    over: bool = False
    undone: bool = False
    at: float = 0.0
    cleared: list[AlertKey] = msgspec.field(default_factory=list)

    @property
    def keys(self) -> tuple[AlertKey, ...]:
        """These are what its alerts are known by."""
        return tuple(map(key_of, self.alerts))

    @property
    def next_step(self) -> int:
        """This is the first step that has not ended, from 1."""
        return max(self.ended, default=0) + 1


class Journal:
    """This is a journal that nobody else has open.

    Args:
        path: of the file; it and its folder are made where there are none.

    Attributes:
        runs: what was done, in order, by name.

    Raises:
        UsageError: it cannot be read or written, or another responder has it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: dict[str, Run] = {}
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._file = os.open(path, flags, _MODE)
        except OSError as error:
            raise UsageError(f"{path}: cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _require_in_place(self._file, path)
            self._read()
        except OSError as error:
            os.close(self._file)
            why = "another qvmi uses it" if isinstance(error, BlockingIOError) else error.strerror
            raise UsageError(f"{path}: cannot be used: {why}") from error
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """This lets go of the file."""
        os.close(self._file)

    @property
    def cut_off(self) -> list[Run]:
        """These are the runs that have not ended: whoever did them was killed."""
        return [run for run in self.runs.values() if not run.over]

    def begin(self, name: str, playbook: str, alerts: tuple[Alert, ...]) -> Run:
        """This notes that a run begins."""
        size = os.fstat(self._file).st_size
        if size > COMPACT_FROM:
            try:
                self._compact()
            except UsageError:
                if size > MAX_GROWN:  # until then there may be no room for it, and yet for a line
                    raise
        self._note(_Began(name, playbook, alerts, time.time()))
        return self.runs[name]

    def begin_step(self, run: Run, step: int, undo: tuple[Undo, ...] = ()) -> None:
        """This notes that a step is about to be taken, and how it would be undone: it may be cut off."""
        self._note(_StepBegan(run.name, step, undo))

    def end_step(self, run: Run, step: int, outcome: Outcome) -> None:
        """This notes what became of a step."""
        self._note(_StepEnded(run.name, step, outcome))

    def end(self, run: Run, *, undone: bool = False) -> None:
        """This notes that a run is over, or was undone."""
        self._note(_Over(run.name, undone))

    def still_led_to_by(self, key: AlertKey) -> list[Run]:
        """These are the runs that an alert led to which was not cleared since."""
        return [run for run in self.runs.values() if key in run.keys and key not in run.cleared]

    def clear(self, run: Run, key: AlertKey) -> None:
        """This notes that an alert was cleared which led to a run: it may lead to another one."""
        self._note(_Cleared(run.name, *key))

    def _note(self, line: _Line) -> None:
        """This writes a line, and takes it in.

        Raises:
            UsageError: it cannot be written.
        """
        data = msgspec.json.encode(line) + b"\n"
        size = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, data)
            if written != len(data):
                os.ftruncate(self._file, size)
                raise UsageError(f"{self.path}: no space left: nothing is done without a journal")
            os.fsync(self._file)
        except OSError as error:
            raise UsageError(f"{self.path}: cannot be written: {error.strerror}") from error
        self._take(line)

    def _take(self, line: _Line) -> None:
        if isinstance(line, _Began):
            name, playbook = line.run, line.playbook
            self.runs[name] = Run(name=name, playbook=playbook, alerts=line.alerts, at=line.at)
            return
        run = self.runs.get(line.run)
        if run is None:
            return
        if isinstance(line, _StepBegan):
            run.begun = line.step
            run.undo += [(line.step, one) for one in line.undo if (line.step, one) not in run.undo]
        elif isinstance(line, _StepEnded):
            run.ended[line.step] = line.outcome
        elif isinstance(line, _Cleared):
            run.cleared.append((line.codepack, line.key))
        else:
            run.over = True
            run.undone = run.undone or line.undone

    def _read(self) -> None:
        """This reads what is there, and leaves out what is old.

        Raises:
            UsageError: it is no journal, or too long.
        """
        if os.fstat(self._file).st_size > MAX_JOURNAL:
            raise UsageError(f"{self.path}: more than {MAX_JOURNAL >> 20} MiB: move it away")
        data = os.pread(self._file, MAX_JOURNAL, 0)
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            os.ftruncate(self._file, whole)
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                self._take(msgspec.json.decode(line, type=_Line))
            except (msgspec.MsgspecError, UsageError, UnicodeDecodeError, RecursionError) as error:
                why = f"line {number} is none of a journal ({error}): move it away"
                raise UsageError(f"{self.path}: {why}") from error
        self._forget_old(len(self.runs) - MAX_RUNS)

    def _forget_old(self, count: int) -> None:
        """This forgets so many runs that are over."""
        for run in self._over[: max(0, count)]:
            del self.runs[run.name]

    @property
    def _over(self) -> list[Run]:
        """These are the runs that are over, by age; first those of which nothing is to be undone."""
        over = [run for run in self.runs.values() if run.over]
        return sorted(over, key=lambda run: bool(run.undo) and not run.undone)

    def _compact(self) -> None:
        """This writes the journal anew, with what is kept of it.

        Raises:
            UsageError: it cannot be written; then it is as it was.
        """
        self._forget_old(len(self.runs) - MAX_RUNS)
        held = {name: _lines_of(run) for name, run in self.runs.items()}
        size = sum(map(len, held.values()))
        for run in self._over:
            if size <= MAX_KEPT:
                break
            size -= len(held.pop(run.name))
            del self.runs[run.name]
        new = self.path.with_name(f"{self.path.name}.new")
        try:
            with suppress(FileNotFoundError):
                new.unlink()
            self._replace(new, b"".join(held.values()))
        except OSError as error:
            raise UsageError(f"{self.path}: cannot be written anew: {error.strerror}") from error

    def _replace(self, new: Path, data: bytes) -> None:
        """This puts a file with this content in the place of the journal, held as it is."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        file = os.open(new, flags, _MODE)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            while data:
                data = data[os.write(file, data) :]
            os.fsync(file)
            new.replace(self.path)
        except BaseException:
            os.close(file)
            with suppress(OSError):
                new.unlink()
            raise
        os.close(self._file)
        self._file = file
        _sync_folder(self.path.parent)


def _require_in_place(file: int, path: Path) -> None:
    """This raises BlockingIOError where a journal was written anew as the one before it was opened."""
    if not os.path.samestat(os.fstat(file), path.stat()):
        raise BlockingIOError


def _sync_folder(folder: Path) -> None:
    """This puts on the disk which file bears which name."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lines_of(run: Run) -> bytes:
    """These are the lines that say of a run what is known of it."""
    lines: list[_Line] = [_Began(run.name, run.playbook, run.alerts, run.at)]
    lines += [_StepBegan(run.name, step, (one,)) for step, one in run.undo]
    lines += [_StepEnded(run.name, step, outcome) for step, outcome in run.ended.items()]
    if run.begun:
        lines.append(_StepBegan(run.name, run.begun))
    if run.over:
        lines.append(_Over(run.name, run.undone))
    lines += [_Cleared(run.name, *key) for key in run.cleared]
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
