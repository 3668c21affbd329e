"""The contract of a codepack that is shown more than memory: what it wants, and what it is given."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from qvmi.codepacks.codepack import Codepack, Finding
from qvmi.errors import CodepackError, UsageError
from qvmi.memory.physical import PhysicalMemory
from qvmi.policy import Grant
from qvmi.semantics.guest_os import GuestOS, Listing

if TYPE_CHECKING:  # import time, in every process of a codepack
    from qvmi.machine.devices.disk_differences import DiskDifference
    from qvmi.machine.devices.flow_watch import Flow

__all__ = [
    "MAX_FLOWS_S",
    "NO_RESOURCES",
    "RESOURCE_GRANTS",
    "ResourcePack",
    "Resources",
    "Wanted",
    "equipped",
    "wanted_of",
]

MAX_FLOWS_S: Final = 300.0
"""Longest time that flows are watched before one look: what is seen in it is told behind it."""

RESOURCE_GRANTS: Final = frozenset({Grant.DISK, Grant.NETWORK_CAPTURE})
"""The grants that such a codepack needs, each for one of its resources."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """This is what a codepack is to be shown beside memory.

    Args:
        disk_differences: whether page cache and disks are compared before each look.
        flows_s: for how many seconds flows are watched before each look; 0 for not at all.

    Raises:
        UsageError: that is too long, or no time.
    """

    disk_differences: bool = False
    flows_s: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.flows_s) and 0.0 <= self.flows_s <= MAX_FLOWS_S):
            raise UsageError(f"flows_s is {self.flows_s}; give 0 to {MAX_FLOWS_S:g}")

    @property
    def grants(self) -> frozenset[Grant]:
        """These are the grants that it takes."""
        disk = {Grant.DISK} if self.disk_differences else set[Grant]()
        return frozenset(disk | ({Grant.NETWORK_CAPTURE} if self.flows_s else set()))


_NOTHING: Final = Wanted()


class Resources:
    """This is what a codepack is shown beside memory, as of just before its look.

    Args:
        disk_differences: None where they are not shown.
        flows: None where they are not shown.
    """

    def __init__(
        self,
        *,
        disk_differences: "Listing[DiskDifference] | None" = None,
        flows: "Listing[Flow] | None" = None,
    ) -> None:
        self._disk_differences = disk_differences
        self._flows = flows

    @property
    def disk_differences(self) -> "Listing[DiskDifference]":
        """This lists the pages of cached files that are not what the disk has.

        Raises:
            UsageError: they are not shown.
        """
        if self._disk_differences is None:
            raise _not_shown("the differences of disk and memory")
        return self._disk_differences

    @property
    def flows(self) -> "Listing[Flow]":
        """This lists the flows that passed the machine's network cards.

        Raises:
            UsageError: they are not shown.
        """
        if self._flows is None:
            raise _not_shown("flows")
        return self._flows

    @property
    def listings(self) -> tuple[Listing[Any], ...]:
        """These are all that are shown."""
        return tuple(one for one in (self._disk_differences, self._flows) if one is not None)


NO_RESOURCES: Final = Resources()
"""What a codepack is shown beside memory that is given nothing: it is told so when it asks."""


class ResourcePack(Codepack, Protocol):
    """This is a codepack that is shown more than memory.

    Whoever runs it fetches that before each look, for as long as a look may take, where its policy
    holds the grants; gaps in it are gaps of the look.
    """

    @property
    def wanted(self) -> Wanted:
        """This is what it is to be shown; its grants must be among those that it needs."""
        ...

    def inspect(
        self, guest: GuestOS, memory: PhysicalMemory, resources: Resources = NO_RESOURCES
    ) -> Iterable[Finding]:
        """This looks once; see :meth:`~qvmi.codepacks.codepack.Codepack.inspect`."""
        ...


@dataclass(frozen=True, slots=True)
class _Equipped:
    """This is a codepack for one look, with what it is shown in it."""

    pack: ResourcePack
    resources: Resources

    @property
    def name(self) -> str:
        return self.pack.name

    @property
    def interval_s(self) -> float:
        return self.pack.interval_s

    @property
    def grants(self) -> frozenset[Grant]:
        return self.pack.grants

    def inspect(self, guest: GuestOS, memory: PhysicalMemory) -> Iterable[Finding]:
        return self.pack.inspect(guest, memory, self.resources)


def equipped(pack: ResourcePack, resources: Resources) -> Codepack:
    """This is a codepack for one look, in which it is shown these resources."""
    return _Equipped(pack, resources)


def wanted_of(codepack: object) -> Wanted:
    """This is what a codepack wants: its attribute ``wanted``, if it has one.

    Raises:
        CodepackError: that is something else, or takes grants that the codepack does not ask for.
    """
    name = str(getattr(codepack, "name", ""))
    wanted: object = getattr(codepack, "wanted", None) or _NOTHING
    if not isinstance(wanted, Wanted):
        raise CodepackError(name, f"what it wants is a {type(wanted).__name__}")
    grants = {Grant(grant) for grant in getattr(codepack, "grants", ())}
    if more := wanted.grants - grants:
        asked = ", ".join(sorted(more))
        raise CodepackError(name, f"it wants what takes grants that it does not ask for: {asked}")
    return wanted


def _not_shown(what: str) -> UsageError:
    return UsageError(
        f"this codepack was not shown {what}: it must name them in `wanted`, and be run where they are"
    )
