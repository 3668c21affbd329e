"""The commands that list what processes have, and what the kernel says: ``files``, ``maps`` and so on."""

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from qvmi.cli.exit_code import ExitCode
from qvmi.cli.handlers.listings import Inhabited, looked, show
from qvmi.cli.named_process import named_process
from qvmi.cli.printing.output import Output
from qvmi.cli.printing.table import Column
from qvmi.semantics.guest_os import (
    CommandLine,
    GuestOS,
    Listing,
    LogRecord,
    MemoryMapping,
    Mount,
    OpenFile,
    Process,
    Socket,
    Variable,
)

__all__ = ["cmdline", "env", "files", "log", "maps", "mounts", "perhaps_of", "sockets"]

Row = TypeVar("Row")

_DELETED: Final = " (deleted)"
_LEVELS: Final = dict(
    enumerate(("emerg", "alert", "crit", "err", "warn", "notice", "info", "debug"))
)
"""As dmesg calls them."""

# In each table the guest's words come last, where they can move nothing else.
_MOUNT: Final[Sequence[Column[Mount]]] = (
    Column("ID", lambda mount: str(mount.id), right=True),
    Column("PARENT", lambda mount: str(mount.parent_id), right=True),
    Column("NAMESPACE", lambda mount: str(mount.namespace), right=True),
    Column("DEVICE", lambda mount: mount.device, right=True),
    Column("OPTIONS", lambda mount: mount.options),
    Column("TYPE", lambda mount: mount.filesystem),
    Column("SOURCE", lambda mount: mount.source),
    Column("ROOT", lambda mount: mount.root),
    Column("PATH", lambda mount: mount.path),
)
_FILE: Final[Sequence[Column[OpenFile]]] = (
    Column("PID", lambda file: str(file.pid), right=True),
    Column("FD", lambda file: str(file.fd), right=True),
    Column("MODE", lambda file: file.access or "-"),
    Column("KIND", lambda file: file.kind),
    Column("POSITION", lambda file: str(file.position), right=True),
    Column("DEVICE", lambda file: file.device, right=True),
    Column("INODE", lambda file: str(file.inode), right=True),
    Column("PATH", lambda file: file.path + _DELETED * file.deleted),
)
_SOCKET: Final[Sequence[Column[Socket]]] = (
    Column("PID", lambda socket: _or_dash(socket.pid), right=True),
    Column("FD", lambda socket: _or_dash(socket.fd), right=True),
    Column("PROTOCOL", lambda socket: socket.protocol),
    Column("STATE", lambda socket: socket.state),
    Column("NAMESPACE", lambda socket: str(socket.namespace), right=True),
    Column("INODE", lambda socket: str(socket.inode), right=True),
    Column("LOCAL", lambda socket: socket.local or "-"),
    Column("REMOTE", lambda socket: socket.remote or "-"),
)
_MAPPING: Final[Sequence[Column[MemoryMapping]]] = (
    Column("PID", lambda mapping: str(mapping.pid), right=True),
    Column("START", lambda mapping: f"{mapping.start:#x}", right=True),
    Column("END", lambda mapping: f"{mapping.end:#x}", right=True),
    Column("PERM", lambda mapping: mapping.permissions),
    Column("OFFSET", lambda mapping: f"{mapping.offset:#x}", right=True),
    Column("DEVICE", lambda mapping: mapping.device or "-", right=True),
    Column("INODE", lambda mapping: str(mapping.inode), right=True),
    Column("NAME", lambda mapping: mapping.name + _DELETED * mapping.deleted),
)
_COMMAND_LINE: Final[Sequence[Column[CommandLine]]] = (
    Column("PID", lambda line: str(line.pid), right=True),
    Column("NAME", lambda line: line.name),
    Column("ARGUMENTS", lambda line: " ".join(line.arguments)),
)
_VARIABLE: Final[Sequence[Column[Variable]]] = (
    Column("NAME", lambda variable: variable.name),
    Column("VALUE", lambda variable: "-" if variable.value is None else variable.value),
)
_RECORD: Final[Sequence[Column[LogRecord]]] = (
    Column("TIME", lambda record: f"{record.time_s:.6f}", right=True),
    Column("LEVEL", lambda record: _LEVELS.get(record.level, str(record.level))),
    Column("FACILITY", lambda record: str(record.facility), right=True),
    Column("TEXT", lambda record: record.text),
)


async def mounts(machine: Inhabited, output: Output, *, pid: int | None, exact: bool) -> ExitCode:
    """This lists the mounts that a process sees, or those of all mount namespaces."""
    walk = perhaps_of(pid, lambda guest, process: guest.mounts(process))
    return show(output, await looked(machine, output, walk, exact=exact), _MOUNT)


async def files(machine: Inhabited, output: Output, *, pid: int | None, exact: bool) -> ExitCode:
    """This lists the open files of a process, or of all."""
    walk = perhaps_of(pid, lambda guest, process: guest.open_files(process))
    return show(output, await looked(machine, output, walk, exact=exact), _FILE)


async def sockets(machine: Inhabited, output: Output, *, pid: int | None, exact: bool) -> ExitCode:
    """This lists the sockets that a process has open, or all there are."""
    walk = perhaps_of(pid, lambda guest, process: guest.sockets(process))
    return show(output, await looked(machine, output, walk, exact=exact), _SOCKET)


async def maps(machine: Inhabited, output: Output, *, pid: int | None, exact: bool) -> ExitCode:
    """This lists the memory mappings of a process, or those of all."""
    walk = perhaps_of(pid, lambda guest, process: guest.mappings(process))
    return show(output, await looked(machine, output, walk, exact=exact), _MAPPING)


async def cmdline(machine: Inhabited, output: Output, *, pid: int | None, exact: bool) -> ExitCode:
    """This lists how a process was called, or how all were."""
    walk = perhaps_of(pid, lambda guest, process: guest.command_lines(process))
    return show(output, await looked(machine, output, walk, exact=exact), _COMMAND_LINE)


async def env(machine: Inhabited, output: Output, *, pid: int, exact: bool) -> ExitCode:
    """This lists the environment that a process was given."""
    walk = _of(pid, lambda guest, process: guest.environment(process))
    return show(output, await looked(machine, output, walk, exact=exact), _VARIABLE)


async def log(machine: Inhabited, output: Output, *, exact: bool) -> ExitCode:
    """This lists the kernel's log."""
    listing = await looked(machine, output, lambda guest: guest.log(), exact=exact)
    return show(output, listing, _RECORD)


def _or_dash(number: int | None) -> str:
    return "-" if number is None else str(number)


def _of(
    pid: int, ask: Callable[[GuestOS, Process], Listing[Row]]
) -> Callable[[GuestOS], Listing[Row]]:
    """This makes a question about one process, which is looked for in the same moment."""
    return lambda guest: ask(guest, named_process(guest, pid))


def perhaps_of(
    pid: int | None, ask: Callable[[GuestOS, Process | None], Listing[Row]]
) -> Callable[[GuestOS], Listing[Row]]:
    """This makes a question about one process, or about all."""
    if pid is None:
        return lambda guest: ask(guest, None)
    return _of(pid, ask)
