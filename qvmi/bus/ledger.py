"""A small database of one program's own: what it has noted is there after it is killed.

Each note is in the file, and the file on the disk, before whoever noted it goes on. What is noted at the
same time shares one commit, since it is the disk that takes the time.

References: SQLite "Write-Ahead Logging", ``PRAGMA synchronous``, ``PRAGMA locking_mode``, "SAVEPOINT".
"""

import asyncio
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, TypeVar

from qvmi.errors import LedgerFailed

__all__ = ["Ledger", "Transaction", "Work"]

Result = TypeVar("Result")
Transaction = sqlite3.Connection
"""The database, within a transaction that is neither begun nor ended by whoever is given it."""
Work = Callable[[Transaction], Result]

MAX_TOGETHER: Final = 256
"""Pieces of work that share one commit: more would let the first of them wait for too long."""
MAX_WAITING: Final = 1024
"""Pieces of work that wait for the thread; whoever brings more waits as well."""
_MODE: Final = 0o600
"""Alerts tell what runs in a guest: they are nobody else's business."""


class _Job(NamedTuple):
    """This is one piece of work, and who waits for it."""

    work: Work[Any]
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Any]


class _Outcome(NamedTuple):
    """This is what came of one piece of work."""

    answer: asyncio.Future[Any]
    result: object
    error: Exception | None


class Ledger:
    """This is one database, which one program has at a time; only :meth:`open` makes one."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._room = asyncio.Semaphore(MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name="qvmi-ledger", daemon=True)
        self._closed = False

    @classmethod
    async def open(cls, path: Path, tables: Sequence[str]) -> Self:
        """This opens the database, and makes the file and its tables where there are none.

        Args:
            path: of the file; its folder must be there.
            tables: ``CREATE TABLE IF NOT EXISTS …``.

        Raises:
            LedgerFailed: another program has it, or it is no database, or cannot be written.
        """
        ledger = cls(path, await asyncio.to_thread(_opened, path, tables))
        ledger._thread.start()
        return ledger

    async def do(self, work: Work[Result]) -> Result:
        """This does something in a transaction, and returns once what it changed is on the disk.

        A caller that is cancelled does not learn whether it was done.

        Raises:
            LedgerFailed: the database failed, such as on a full disk: nothing was changed.
            Exception: what the work raised; what it changed is undone.
        """
        async with self._room:
            if self._closed:
                raise LedgerFailed(self.path, "it was closed")
            loop = asyncio.get_running_loop()
            answer: asyncio.Future[Result] = loop.create_future()
            self._jobs.put(_Job(work, loop, answer))
            return await answer

    async def close(self) -> None:
        """This ends what was begun, and lets go of the file; closing twice does nothing."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        """This is the thread: it does all work that waits, and commits it together."""
        ended = False
        while not ended:
            jobs = [self._jobs.get()]
            with suppress(queue.Empty):
                while len(jobs) < MAX_TOGETHER:
                    jobs.append(self._jobs.get_nowait())
            ended = None in jobs
            self._do_together([job for job in jobs if job is not None])
        self._connection.close()

    def _do_together(self, jobs: Sequence[_Job]) -> None:
        outcomes: list[_Outcome] = []
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            outcomes = [self._outcome(job) for job in jobs]
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            failed = LedgerFailed(self.path, str(error))
            outcomes = [_Outcome(job.answer, None, failed) for job in jobs]
        for loop in {job.loop for job in jobs}:
            its = [one for job, one in zip(jobs, outcomes, strict=True) if job.loop is loop]
            with suppress(RuntimeError):  # the loop has ended: nobody waits any more
                loop.call_soon_threadsafe(_tell, its)

    def _outcome(self, job: _Job) -> _Outcome:
        """This does one piece of work; what it raises undoes nobody else's."""
        self._connection.execute("SAVEPOINT work")
        try:
            result = job.work(self._connection)
        except Exception as error:  # noqa: BLE001 - it is raised to whoever brought the work
            self._connection.execute("ROLLBACK TO work")
            failed = LedgerFailed(self.path, str(error)) if _is_databases(error) else error
            return _Outcome(job.answer, None, failed)
        finally:
            self._connection.execute("RELEASE work")
        return _Outcome(job.answer, result, None)


def _tell(outcomes: Sequence[_Outcome]) -> None:
    for answer, result, error in outcomes:
        if answer.done():
            continue
        if error is None:
            answer.set_result(result)
        else:
            answer.set_exception(error)


def _is_databases(error: Exception) -> bool:
    return isinstance(error, sqlite3.Error)


def _opened(path: Path, tables: Sequence[str]) -> sqlite3.Connection:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE))
    except OSError as error:
        raise LedgerFailed(path, error.strerror or str(error)) from error
    try:
        connection = sqlite3.connect(
            path, timeout=0.0, isolation_level=None, check_same_thread=False
        )
    except sqlite3.Error as error:
        raise LedgerFailed(path, str(error)) from error
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")
        for table in tables:
            connection.execute(table)
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        connection.close()
        raise LedgerFailed(path, _in_words(error)) from error
    return connection


def _in_words(error: sqlite3.Error) -> str:
    if error.sqlite_errorname == "SQLITE_BUSY":
        return "another program has it: end that, or use another file"
    if error.sqlite_errorname in ("SQLITE_NOTADB", "SQLITE_CORRUPT"):
        return f"{error}: move the file away, and what it still held is lost"
    return str(error)
