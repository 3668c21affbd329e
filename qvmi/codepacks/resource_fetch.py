"""Fetching what a codepack is shown beside memory: from the machine, under the codepack's own policy."""

import logging
import time
from typing import TYPE_CHECKING, Final, Protocol, TypeGuard, runtime_checkable

from qvmi.codepacks.codepack import Codepack
from qvmi.codepacks.resources import ResourcePack, Resources, wanted_of
from qvmi.errors import CodepackRefused, PolicyDenied, UsageError
from qvmi.machine.devices.flow_owners import LEAST_LOOKS
from qvmi.policy import Grant, Policy, PolicyGate, refuse
from qvmi.semantics.guest_os import Gap, Listing

if TYPE_CHECKING:  # import time, in every process of a codepack
    from qvmi.machine.devices.disk_differences import DiskDifference
    from qvmi.machine.devices.flow_watch import Flow

__all__ = [
    "ResourceFetch",
    "ResourceMachine",
    "require_countable",
    "require_reachable",
    "wants_resources",
]

_audit: Final = logging.getLogger("qvmi.audit")

_OUT_OF_REACH: Final = (
    "it is shown the disks or the network of a machine that runs, which only the process that holds"
    " QEMU's sockets can: name the machine by --qmp, and leave out --placement process"
)
_ACTIONS: Final = {
    Grant.DISK: "compare the disks with memory",
    Grant.NETWORK_CAPTURE: "watch what passes the network cards",
}


@runtime_checkable
class ResourceMachine(Protocol):
    """This is what is needed of a machine to show more of it than memory."""

    async def lacks(self, grant: Grant) -> str:
        """This is why there is nothing that the grant would show; empty where there is something."""
        ...

    async def disk_differences(self, under: str = "") -> "Listing[DiskDifference]":
        """This compares the page cache with the disks."""
        ...

    async def netdevs(self) -> tuple[str, ...]:
        """These are the ids of what is behind the network cards."""
        ...

    async def flows(
        self, seconds: float, *, netdev: str | None = None, least_looks: int = 1
    ) -> "Listing[Flow]":
        """This watches what passes a network card for so long."""
        ...


class ResourceFetch:
    """This fetches what one codepack wants of one machine.

    Args:
        codepack: for whom.
        machine: of what.
        policy: what the codepack may do.

    Attributes:
        pack: the codepack.
    """

    def __init__(self, codepack: ResourcePack, machine: object, policy: Policy) -> None:
        self.pack: Final = codepack
        self._wanted = wanted_of(codepack)
        self._machine = machine
        self._gate = PolicyGate(f"codepack {codepack.name}", policy)

    async def fetch(self) -> Resources:
        """This fetches all of it, which takes as long as flows are to be watched.

        Raises:
            PolicyDenied: the policy does not give it, or not so often.
            CodepackRefused: this is no machine that can be asked for it.
            UsageError: the machine has no such thing.
            QvmiError: whatever asking it raises.
        """
        machine = require_reachable(self.pack, self._machine)
        differences = flows = None
        if self._wanted.disk_differences:
            await self._require(machine, Grant.DISK)
            differences = await machine.disk_differences()
        if self._wanted.flows_s:
            await self._require(machine, Grant.NETWORK_CAPTURE)
            flows = await _flows(machine, self._wanted.flows_s)
        return Resources(disk_differences=differences, flows=flows)

    async def _require(self, machine: ResourceMachine, grant: Grant) -> None:
        """This takes note of an access, and raises where it is refused or leads nowhere."""
        action = _ACTIONS[grant]
        self._gate.require(grant, action, now=time.monotonic())
        if reason := await machine.lacks(grant):
            raise UsageError(reason)
        _audit.info("%s: %s", self._gate.holder, action)


async def _flows(machine: ResourceMachine, seconds: float) -> "Listing[Flow]":
    """These are the flows of all cards, which are watched one after the other."""
    rows: list[Flow] = []
    gaps: dict[Gap, None] = {}
    provenance = None
    for netdev in await machine.netdevs():
        flows = await machine.flows(seconds, netdev=netdev, least_looks=LEAST_LOOKS)
        rows += flows
        gaps.update(dict.fromkeys(flows.gaps))
        provenance = provenance or flows.provenance
    if provenance is None:
        raise UsageError("the machine's network card is gone")
    return Listing(tuple(rows), tuple(gaps), provenance)


def wants_resources(codepack: Codepack) -> TypeGuard[ResourcePack]:
    """This tells whether a codepack is to be shown more than memory.

    Raises:
        CodepackError: what it says of that cannot be used.
    """
    return bool(wanted_of(codepack).grants)


def require_reachable(codepack: ResourcePack, machine: object) -> ResourceMachine:
    """This is the machine, as far as more than memory can be had of it; CodepackRefused where none can."""
    if not isinstance(machine, ResourceMachine):
        raise CodepackRefused(codepack.name, _OUT_OF_REACH)
    return machine


def require_countable(codepack: ResourcePack, policy: Policy) -> None:
    """This raises PolicyDenied for a limit that nobody keeps for what such a codepack is shown."""
    for grant in sorted(wanted_of(codepack).grants):
        if policy.limits_of(grant).bytes_per_second is not None:
            reason = "nobody counts the bytes of what a codepack is shown: bound it by per-second"
            refuse(
                PolicyDenied(f"codepack {codepack.name}: {_ACTIONS[grant]}", grant, reason=reason)
            )
