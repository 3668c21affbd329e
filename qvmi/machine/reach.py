"""What there is to reach a machine's memory by: its process, its monitor, its gdbstub."""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial

from qvmi.machine.control import Control
from qvmi.machine.ways.host_mapping import HostMaps
from qvmi.machine.ways.memory_ladder import Reach
from qvmi.machine.ways.remote_memory import Conversation
from qvmi.policy import Grant
from qvmi.qmp import commands
from qvmi.qmp.monitor import Monitor

__all__ = ["reach_of"]


def reach_of(
    monitor: Monitor, control: Control, maps: HostMaps | None, *, stub_named: bool
) -> Reach:
    """This gathers it; nothing is tried.

    Args:
        monitor: the conversation with QEMU.
        control: stops the guest, and lends its gdbstub.
        maps: of QEMU's process on this host; None where that is not known.
        stub_named: whether the user has named the gdbstub for its memory.
    """
    return Reach(
        maps=maps,
        host_address=partial(commands.gpa2hva, monitor),
        saved=partial(_saved, monitor, control),
        printed=partial(_printed, monitor),
        stub=partial(_stub, control),
        may_stop=Grant.PAUSE in control.policy.grants,
        stub_named=stub_named,
    )


# What is imported below takes time, which those whose memory is direct do not have to spend.


async def _saved(monitor: Monitor, control: Control) -> Iterator[Conversation]:
    """These are conversations over a file each, in the folders that may do; made as they are asked for."""
    from qvmi.machine.ways.monitor_memory import SavedMemory  # noqa: PLC0415

    guardian = await control.run_control.prepare()

    def made() -> Iterator[Conversation]:
        for base in SavedMemory.bases():
            with suppress(OSError):
                memory = SavedMemory(monitor, base)
                guardian.keep(
                    memory.folder
                )  # a piece of the guest is left in it by whoever is killed
                yield memory

    return made()


def _printed(monitor: Monitor) -> Conversation:
    from qvmi.machine.ways.monitor_memory import PrintedMemory  # noqa: PLC0415

    return PrintedMemory(monitor)


def _stub(control: Control) -> Conversation:
    from qvmi.machine.stub_memory import StubMemory  # noqa: PLC0415

    return StubMemory(control.run_control, control.stub)
