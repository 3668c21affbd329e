"""The steps that a playbook can take, as its file names them."""

from collections.abc import Mapping
from typing import Final

import msgspec

from qvmi.manager.response.records import NOTICE

__all__ = [
    "MAX_LONGEST_S",
    "STEPS",
    "DiskSnapshot",
    "Dump",
    "Evidence",
    "NicDown",
    "NicUp",
    "Pause",
    "Restore",
    "Resume",
    "Say",
    "Step",
]

MAX_LONGEST_S: Final = 600.0
"""Longest pause that can be asked for, in seconds: beyond it other machines take a guest for dead."""


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """This is one step."""


class NicDown(Step, frozen=True):
    """This takes the link of one NIC down, or of all where none is named."""

    nic: str | None = None


class NicUp(Step, frozen=True):
    """This lets the link of one NIC be up, or of all where none is named."""

    nic: str | None = None


class Pause(Step, frozen=True):
    """This lets the guest stand still until it is resumed, but for no longer than so many seconds."""

    longest_s: float


class Resume(Step, frozen=True):
    """This lets the guest run on."""


class Dump(Step, frozen=True):
    """This writes the guest's memory to an ELF core file, for which the guest stands still.

    Args:
        longest_s: for how long it may at most, in seconds; a dump that is not whole then is removed.
    """

    longest_s: float = 60.0


class DiskSnapshot(Step, frozen=True):
    """This keeps how the disks are.

    Args:
        name: of the disk's device or block node; None for every disk that is written to.
        overlay_folder: where files are made that take over what is written to disks which cannot keep a
            snapshot of their own; None where such disks are refused.
    """

    name: str | None = None
    overlay_folder: str | None = None


class Evidence(Step, frozen=True):
    """This writes down the alerts and what was done, a report, and the hashes of all files.

    Args:
        report: whether a page of HTML is written, too.
    """

    report: bool = True


class Restore(Step, frozen=True):
    """This writes back the system calls and interrupt gates that the alert says were changed."""


class Say(Step, frozen=True):
    """This publishes a message.

    Args:
        text: what it says.
        kind: the last part of its topic.
    """

    text: str
    kind: str = NOTICE


STEPS: Final[Mapping[str, type[Step]]] = {
    "nic-down": NicDown,
    "nic-up": NicUp,
    "pause": Pause,
    "resume": Resume,
    "dump": Dump,
    "disk-snapshot": DiskSnapshot,
    "evidence": Evidence,
    "restore": Restore,
    "message": Say,
}
"""The steps by the word that asks for them."""
