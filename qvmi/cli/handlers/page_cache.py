"""The commands about files that are in the guest's memory: ``cached`` and ``recover``."""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qvmi.cli.declared.values import FileName
from qvmi.cli.exit_code import ExitCode
from qvmi.cli.handlers.listings import Inhabited, looked, report_gaps, report_pause, show
from qvmi.cli.printing.output import Output
from qvmi.cli.printing.table import Column, table_of
from qvmi.errors import GuestError
from qvmi.machine.new_file import NewFile
from qvmi.semantics.guest_os import CachedFile, GuestOS, Listing
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.rows.cached_files import MissingRange

if TYPE_CHECKING:
    from qvmi.cli.dumped import AskedDump
    from qvmi.machine.machine import Machine

__all__ = ["cached", "recover"]

_DELETED: Final = " (deleted)"
_RECOVER_TIMEOUT_S: Final = 3600.0
"""A file of some GiB, through the slowest way to the memory."""
_MAX_CHOICES: Final = 20
"""Files of one name that are told when it is not clear which one is meant."""

# In each table the guest's words come last, where they can move nothing else.
_FILE: Final[Sequence[Column[CachedFile]]] = (
    Column("DEVICE", lambda file: file.device, right=True),
    Column("INODE", lambda file: str(file.inode), right=True),
    Column("TYPE", lambda file: file.filesystem),
    Column("SIZE", lambda file: str(file.size), right=True),
    Column("CACHED", lambda file: str(file.cached), right=True),
    Column("DIRTY", lambda file: str(file.dirty), right=True),
    Column("PATH", lambda file: (file.path or "-") + _DELETED * file.deleted),
)
_MISSING: Final[Sequence[Column[MissingRange]]] = (
    Column("START", lambda part: str(part.start), right=True),
    Column("END", lambda part: str(part.end), right=True),
    Column("REASON", lambda part: part.reason),
)


async def cached(machine: Inhabited, output: Output, *, under: str | None, exact: bool) -> ExitCode:
    """This lists the files that have pages in memory."""
    walk = partial(_cached, under or "")
    listing = await looked(machine, output, walk, exact=exact)
    return show(output, listing, _FILE)


def _cached(under: str, guest: GuestOS) -> Listing[CachedFile]:
    return guest.cached_files(under)


async def recover(
    machine: "Machine | AskedDump", output: Output, *, wanted: FileName, path: str, exact: bool
) -> ExitCode:
    """This writes what is in memory of a file, and lists what is missing.

    Raises:
        GuestError: no file of that name is in memory, or several are.
        UsageError: the file cannot be written.
    """
    found: list[CachedFile] = []
    with NewFile(Path(path)) as file:
        async with _perhaps_paused(machine, exact=exact):
            listing = await machine.query(
                _recovery(wanted, file, found.append), timeout_s=_RECOVER_TIMEOUT_S
            )
        file.put_in_place()
    return _report(output, found[-1], path, listing)


@asynccontextmanager
async def _perhaps_paused(machine: "Machine | AskedDump", *, exact: bool) -> AsyncIterator[None]:
    if not exact:
        yield
        return
    async with machine.paused():
        yield


def _recovery(
    wanted: FileName, file: NewFile, note: Callable[[CachedFile], None]
) -> Callable[[LinuxGuest], Listing[MissingRange]]:
    """This makes the look that finds a file and writes its content."""

    def look(guest: LinuxGuest) -> Listing[MissingRange]:
        its = _meant(wanted, guest.cached_files().items)
        note(its)
        listing = guest.recover(its, file.write)
        file.set_size(its.size)
        return listing

    return look


def _meant(wanted: FileName, files: Sequence[CachedFile]) -> CachedFile:
    """This is the one file of a name; of several it is the one that was not deleted.

    Raises:
        GuestError: there is none, or it is not clear which one is meant.
    """
    named = [file for file in files if _is_named(file, wanted)] or _deleted(wanted, files)
    there = [file for file in named if not file.deleted]
    if not named:
        raise GuestError(_why_none(wanted, files))
    if len(there) == 1 or len(named) == 1:
        return (there or named)[0]
    choices = ", ".join(f"{file.device}:{file.inode}" for file in named[:_MAX_CHOICES])
    raise GuestError(f"several files are {str(wanted)!r}; name one of {choices}")


def _deleted(wanted: FileName, files: Iterable[CachedFile]) -> list[CachedFile]:
    """These are the deleted files that listings show under a name, with what they append to it."""
    path = wanted.path.removesuffix(_DELETED)
    if path == wanted.path:
        return []
    return [file for file in files if file.deleted and file.path == path]


def _why_none(wanted: FileName, files: Iterable[CachedFile]) -> str:
    """This is why there is no such file, as far as can be told."""
    if wanted.path and any(file.path.startswith(wanted.path.rstrip("/") + "/") for file in files):
        return f"{wanted.path!r} is a folder: name a file, as `qvmi cached --under` lists them"
    hint = "a file can be named by MAJOR:MINOR:INODE, too, as `qvmi cached` lists them"
    return f"no page of a file {str(wanted)!r} is in the guest's memory; {hint}"


def _is_named(file: CachedFile, wanted: FileName) -> bool:
    if wanted.path:
        return file.path == wanted.path
    return file.inode == wanted.inode and wanted.device in {"", file.device}


def _report(
    output: Output, file: CachedFile, path: str, listing: Listing[MissingRange]
) -> ExitCode:
    missing = sum(part.end - part.start for part in listing)
    if output.json:
        document = {"path": path, "file": file, "missing_size": missing, "missing": listing.items}
        output.document(document | {"gaps": listing.gaps, "provenance": listing.provenance})
    else:
        output.line(f"{path}: {file.size} bytes, {missing} of them missing")
        if listing.items:
            output.table(table_of(_MISSING, listing.items))
    if listing.provenance.pause_s:
        report_pause(output, listing.provenance)
    code = report_gaps(output, listing.gaps)
    return ExitCode.NOT_SEEN if missing else code
