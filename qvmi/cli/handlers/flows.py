"""The command that tells which process has which flow: ``flows``."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from qvmi.cli.exit_code import ExitCode
from qvmi.cli.handlers.listings import show
from qvmi.cli.printing.output import Output
from qvmi.cli.printing.table import Column
from qvmi.machine.devices.flow_watch import Flow

if TYPE_CHECKING:
    from qvmi.machine.machine import Machine

__all__ = ["flows"]


def _owner(flow: Flow) -> str:
    if flow.unowned:
        return "NOBODY"
    return flow.process or ("kernel" if flow.socket is not None else "-")


# The guest's words come last, where they can move nothing else.
_FLOW: Final[Sequence[Column[Flow]]] = (
    Column("PROTO", lambda flow: flow.protocol),
    Column("LOCAL", lambda flow: flow.local),
    Column("REMOTE", lambda flow: flow.remote),
    Column("SENT", lambda flow: str(flow.bytes_out), right=True),
    Column("RECEIVED", lambda flow: str(flow.bytes_in), right=True),
    Column("PACKETS", lambda flow: f"{flow.packets_out}/{flow.packets_in}", right=True),
    Column("PID", lambda flow: "-" if flow.pid is None else str(flow.pid), right=True),
    Column("OWNER", _owner),
    Column("NAME", lambda flow: flow.name or "-"),
)


async def flows(
    machine: "Machine", output: Output, *, seconds: float, netdev: str | None
) -> ExitCode:
    """This watches for a while, then lists the flows.

    Raises:
        UsageError: there is no such netdev, or QEMU cannot capture there.
    """
    listing = await machine.flows(seconds, netdev=netdev)
    code = show(output, listing, _FLOW)
    return ExitCode.FOUND if any(flow.unowned for flow in listing) else code
