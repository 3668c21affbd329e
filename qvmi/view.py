"""A labelled look at a guest: registers, memory, and how and when they were taken."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from qvmi.arch.registers import Registers
from qvmi.memory.physical import PhysicalMemory

__all__ = ["Provenance", "Taken", "View"]


class Taken(StrEnum):
    """This is the state the guest was in while it was looked at."""

    LIVE = "live"
    """Nobody stopped the guest for this look. Unless its owner had, it ran, and a listing may join
    facts of slightly different moments."""
    PAUSED = "paused"
    """The guest stood still from the first byte to the last."""
    CAPTURED = "captured"
    """The guest was stopped for a moment by qvmi, and its memory copied or walked."""
    DUMP = "dump"
    """There is no guest, only a file."""


class Provenance(msgspec.Struct, frozen=True, gc=False):
    """This says how a result was taken.

    Args:
        taken: the state of the guest meanwhile.
        at: when the look began, seconds since the Unix epoch on the host's clock.
        pause_s: how long the guest stood still for it, in seconds; 0.0 for a live look.
        epoch: counts resets and kernel changes since the attach; views of an older one are stale.
        retries: parts of the walk that were read again because the guest changed them meanwhile.
    """

    taken: Taken
    at: float
    pause_s: float = 0.0
    epoch: int = 0
    retries: int = 0


def _never_stale() -> None:
    """This accepts: what was captured or dumped does not change."""


def _no_pause() -> float:
    """This is the pause of a look for which nobody was stopped."""
    return 0.0


@dataclass(frozen=True, slots=True)
class View:
    """This is what a machine hands out: everything that is needed to understand the guest.

    Args:
        vcpus: the registers of every virtual CPU, by index.
        memory: the guest's physical memory.
        provenance: how the registers were taken; memory reads of a live view happen later.
        require_current: raises StaleView or MachineGone once the guest is no longer the one that
            was looked at; whoever understands the guest calls it before it answers.
        paused_s: tells how long qvmi has let the guest stand still for this look so far, in seconds.
    """

    vcpus: tuple[Registers, ...]
    memory: PhysicalMemory
    provenance: Provenance
    require_current: Callable[[], None] = _never_stale
    paused_s: Callable[[], float] = _no_pause

    def moment(self) -> float:
        """This is the moment that a look from now on shows: a dump's is its own, whenever one looks.

        Returns:
            Seconds since the Unix epoch.
        """
        in_dump = self.provenance.taken is Taken.DUMP
        return self.provenance.at if in_dump else time.time()
