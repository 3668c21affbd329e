"""What is known of a virtual machine as QEMU runs it."""

from dataclasses import dataclass

from qvmi.machine.memory_ladder import MemoryAttempt

__all__ = ["MachineFacts"]


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
    """

    address: str
    name: str
    qemu_version: str
    run_state: str
    vcpus: int
    ram_size: int
    epoch: int
    memory: tuple[MemoryAttempt, ...]
