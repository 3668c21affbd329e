"""The command that shows the kernel stack of a task: ``stack``."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Final, Protocol, TypeVar

from qvmi.cli.exit_code import ExitCode
from qvmi.cli.handlers.listings import report_pause, show
from qvmi.cli.named_process import named_process
from qvmi.cli.printing.output import Output
from qvmi.cli.printing.table import Column
from qvmi.errors import GuestError, WalkFailed
from qvmi.semantics.guest_os import GuestOS, Listing, StackFrame

__all__ = ["stack"]

Found = TypeVar("Found")


def _symbol(frame: StackFrame) -> str:
    if not frame.symbol:
        return "-"
    module = f" [{frame.module}]" if frame.module else ""
    return f"{frame.symbol}+{frame.offset:#x}{module}"


_FRAME: Final[Sequence[Column[StackFrame]]] = (
    Column("#", lambda frame: str(frame.number), right=True),
    Column("ADDRESS", lambda frame: f"{frame.address:#x}"),
    Column("HOW", lambda frame: frame.how if frame.reliable else f"{frame.how} (unreliable)"),
    Column("SYMBOL", _symbol),
)


class Stoppable(Protocol):
    """This is what the command needs of a machine."""

    async def query(self, look: Callable[[GuestOS], Found]) -> Found:
        """This looks at the system that runs in it."""
        ...

    def paused(self) -> AbstractAsyncContextManager[object]:
        """This keeps it from running for as long as a block lasts."""
        ...


async def stack(
    machine: Stoppable, output: Output, *, pid: int, thread: int | None, exact: bool
) -> ExitCode:
    """This shows the kernel stack of a process's first thread, or of another one.

    Raises:
        GuestError: there is no such process or thread.
    """

    def look(guest: GuestOS) -> Listing[StackFrame]:
        return _stack(guest, pid, thread)

    if not exact:
        return show(output, await machine.query(look), _FRAME)
    with suppress(WalkFailed):  # what does not change, as the names, is read while the guest runs
        await machine.query(look)
    async with machine.paused():  # the registers are of the moment only there
        listing = await machine.query(look)
    report_pause(output, listing.provenance)
    return show(output, listing, _FRAME)


def _stack(guest: GuestOS, pid: int, tid: int | None) -> Listing[StackFrame]:
    process = named_process(guest, pid)
    if tid is None or tid == pid:
        return guest.stack(process)
    mine = (one for one in guest.threads() if (one.pid, one.tgid) == (tid, pid))
    thread = next(mine, None)
    if thread is None:
        raise GuestError(f"process {pid} of this guest has no thread {tid}")
    return guest.stack(thread)
