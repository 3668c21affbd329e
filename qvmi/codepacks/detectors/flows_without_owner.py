"""Flows on the wire whose socket no process of the guest has.

What passes the network card QEMU shows, whatever the guest's kernel says. A flow that lasts has a socket,
and a process that has it open. One without a socket is of code that hides it, or sends past the tables: a
rootkit, a raw socket. One whose socket nobody has is of a process that is not seen.

References: net/ipv4/inet_hashtables.c, net/packet/af_packet.c; MITRE ATT&CK T1014 Rootkit.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from qvmi.addr import Va
from qvmi.codepacks.codepack import Finding, Observation, Severity
from qvmi.codepacks.detectors.hidden_sockets import SOCKET_FACTS, UNDER_WAY_S, unheld_sockets
from qvmi.codepacks.detectors.process_evidence import seen, short
from qvmi.codepacks.resources import MAX_FLOWS_S, NO_RESOURCES, Resources, Wanted
from qvmi.machine.devices.flow_watch import Flow
from qvmi.memory.physical import PhysicalMemory
from qvmi.policy import Grant
from qvmi.semantics.guest_os import GuestOS, Listing, Socket

__all__ = ["FlowsWithoutOwner"]

_MOST_FLOWS: Final = 100
"""Flows that are told of one by one; a guest can send as many as it likes: the rest is told of as one."""
_SHARE: Final = 0.8
"""Of an interval, for which flows are watched: with the look behind that it must not miss the next one."""
_ON_THE_WIRE: Final = (
    *("protocol", "local", "remote", "name"),
    *("packets_out", "packets_in", "bytes_out", "bytes_in"),
)


@dataclass(frozen=True, slots=True)
class FlowsWithoutOwner:
    """This tells of flows that nobody in the guest has.

    Args:
        interval_s: from the beginning of one watching of flows to the next.
    """

    interval_s: float = 10.0

    @property
    def name(self) -> str:
        """This is its name on the bus."""
        return "flows-without-owner"

    @property
    def grants(self) -> frozenset[Grant]:
        """It reads memory, and is shown what passes the network card."""
        return frozenset({Grant.READ_MEMORY, Grant.NETWORK_CAPTURE})

    @property
    def wanted(self) -> Wanted:
        """It is shown flows, those of most of the time."""
        return Wanted(flows_s=min(_SHARE * self.interval_s, MAX_FLOWS_S))

    def inspect(
        self,
        guest: GuestOS,
        memory: PhysicalMemory,  # noqa: ARG002 - the contract gives it
        resources: Resources = NO_RESOURCES,
    ) -> Iterable[Finding]:
        """This asks for the sockets once more, where a flow is suspicious: it may have ended."""
        suspects = [
            flow
            for flow in resources.flows
            if flow.unowned or (flow.socket is not None and flow.pid is None)
        ]
        if not suspects:
            return
        findings = list(_findings(suspects, guest.sockets()))
        yield from findings[:_MOST_FLOWS]
        if further := findings[_MOST_FLOWS:]:
            yield _further(further)


def _findings(suspects: Iterable[Flow], sockets: Listing[Socket]) -> Iterator[Finding]:
    unheld = _unheld(sockets)
    for flow in suspects:
        if flow.unowned:
            absent = Observation(
                view="sockets of the guest", present=False, facts={"sockets": len(sockets)}
            )
            yield _finding(flow, "has no socket in the guest", absent, settle_s=0.0)
        elif flow.socket is not None and (socket := unheld.get(flow.socket)) is not None:
            evidence = (
                seen("tables of sockets", socket, SOCKET_FACTS),
                Observation(view="files_struct.fdt", present=False, facts={}),
            )
            claim = "has a socket that no process that is seen has open"
            yield _finding(flow, claim, *evidence, settle_s=UNDER_WAY_S)


def _unheld(sockets: Listing[Socket]) -> dict[Va, Socket]:
    """These are the sockets that nobody has, by address; none where somebody may yet be unseen."""
    return {} if sockets.gaps else {one.address: one for one in unheld_sockets(sockets)}


def _finding(flow: Flow, claim: str, *evidence: Observation, settle_s: float) -> Finding:
    to = f"{flow.remote} ({short(flow.name)})" if flow.name else flow.remote
    return Finding(
        claim=f"the {flow.protocol} flow of {flow.local} with {to} {claim}",
        severity=Severity.HIGH,
        technique="T1014",
        key=f"{flow.protocol} {flow.local} {flow.remote}",
        evidence=(seen("network card", flow, _ON_THE_WIRE), *evidence),
        settle_s=settle_s,
    )


def _further(findings: list[Finding]) -> Finding:
    """This tells that there are more flows than are told one by one."""
    return Finding(
        claim=f"{len(findings)} further flows are of nobody in the guest",
        severity=Severity.HIGH,
        technique="T1014",
        key="further flows",
        evidence=findings[0].evidence,
    )
