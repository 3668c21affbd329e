"""Opens the gateways of one machine, and closes them so that the guest runs on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from qvmi.errors import QvmiError, UsageError
from qvmi.machine.completion import to_the_end
from qvmi.manager.gateways.doorway import listening, receive
from qvmi.manager.gateways.guest_memory import GuestMemory
from qvmi.manager.gateways.qmp_gateway import QmpGateway
from qvmi.manager.gateways.rsp_gateway import RspGateway
from qvmi.manager.gateways.shared_stub import SharedStub
from qvmi.manager.gateways.standstill import Standstill
from qvmi.policy import Policy
from qvmi.qmp.monitor import Monitor

__all__ = ["Gateway", "Places", "gateways"]


@dataclass(frozen=True, slots=True)
class Places:
    """This is where the gateways listen.

    Args:
        qmp: for clients that speak QMP; None for none.
        gdb: for debuggers; None for none.
    """

    qmp: Path | None = None
    gdb: Path | None = None

    def __post_init__(self) -> None:
        if self.qmp is None and self.gdb is None:
            raise UsageError("no gateway: name a socket for QMP or for gdb to listen on")


class Gateway:
    """This is one machine's open gateways."""

    def __init__(self, monitor: Monitor, standstill: Standstill) -> None:
        self._monitor = monitor
        self._standstill = standstill

    @property
    def stood_still_s(self) -> float:
        """This is for how long the guest has stood still for clients in all, in seconds."""
        return self._standstill.stood_still_s

    async def until_gone(self) -> None:
        """This waits until QEMU has gone.

        Raises:
            MachineGone: always, then. QmpProtocolError: QEMU does not speak QMP any more.
        """
        with self._monitor.events() as events:
            async for _ in events:
                pass


@asynccontextmanager
async def gateways(
    monitor: Monitor, places: Places, policy: Policy, *, gdb: str | None = None
) -> AsyncIterator[Gateway]:
    """This serves third-party tools for as long as the block lasts.

    Afterwards every client has been let go, no breakpoint is left, and a guest that ran runs.

    Args:
        monitor: the conversation with QEMU; it stays the caller's. Where QEMU is frozen, so that the
            guest cannot be let run, it is closed here, and the guardian goes on with it.
        places: where to listen.
        policy: what each client may do.
        gdb: the address of the gdbstub; None to find or start one when the first debugger asks.

    Raises:
        UsageError: a socket cannot be made, or its folder is not private.
    """
    standstill = Standstill(monitor)
    stub = SharedStub(monitor, standstill, gdb)
    gateway = Gateway(monitor, standstill)
    serving: set[asyncio.Task[None]] = set()
    with ExitStack() as stack:
        memory = GuestMemory(monitor, standstill, stack.enter_context(monitor.events()))
        try:
            if places.qmp is not None:
                server = stack.enter_context(listening(places.qmp))
                serve = QmpGateway(monitor, standstill, policy, memory).serve
                serving.add(asyncio.create_task(receive(server, "QMP", serve)))
            if places.gdb is not None:
                server = stack.enter_context(listening(places.gdb))
                debug = RspGateway(standstill, stub, policy, memory).serve
                serving.add(asyncio.create_task(receive(server, "gdb", debug)))
            yield gateway
        finally:
            if await to_the_end(_closed(serving, stub, standstill)):
                await to_the_end(monitor.close(keep_open=True))


async def _closed(
    serving: set[asyncio.Task[None]], stub: SharedStub, standstill: Standstill
) -> bool:
    """This sends all clients away; tells whether the guest is left to the guardian."""
    for task in serving:
        task.cancel()
    if serving:
        await asyncio.wait(serving)
    with suppress(QvmiError):  # of a QEMU that has gone there is nothing left to close
        await stub.close()
    return await standstill.close()
