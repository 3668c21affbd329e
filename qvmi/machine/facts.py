"""What is known of a virtual machine as QEMU runs it."""

from dataclasses import dataclass

from qvmi.machine.ways.memory_ladder import MemoryAttempt
from qvmi.qmp import commands
from qvmi.qmp.concurrency import concurrently
from qvmi.qmp.monitor import Monitor, QemuVersion

__all__ = ["MachineFacts", "ask_facts"]


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """This is what is known of the virtual machine, whatever runs in it.

    Args:
        address: how it was attached to.
        name: what QEMU was told to call it; empty for nothing.
        qemu_version: such as ``7.2.22``.
        run_state: QEMU's word, such as ``running`` or ``paused``.
        vcpus: how many virtual CPUs there are.
        ram_size: bytes of the guest's RAM.
        epoch: counts resets since the attach.
        memory: the ways to the memory that were tried.
        stood_still_s: for how long qvmi has let the guest stand still since the attach, in seconds.
    """

    address: str
    name: str
    qemu_version: str
    run_state: str
    vcpus: int
    ram_size: int
    epoch: int
    memory: tuple[MemoryAttempt, ...]
    stood_still_s: float = 0.0


async def ask_facts(monitor: Monitor) -> tuple[commands.RunState, QemuVersion, str]:
    """This asks QEMU for the machine's run state, QEMU's release, and the machine's name.

    Raises:
        MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
    """
    async with concurrently() as group:
        status = group.create_task(commands.run_state(monitor))
        version = group.create_task(commands.version(monitor))
        name = group.create_task(commands.name(monitor))
    return status.result(), version.result(), name.result()
