"""Flows: the packets between two ends, counted from the guest's point of view."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from qvmi.network.dns import PORT, names_in
from qvmi.network.packets import Packet

__all__ = ["FlowKey", "FlowRecord", "FlowTable"]

_MAX_FLOWS: Final = 20_000
"""Flows that are kept; a scan of all ports has more, and the oldest go."""
_MAX_NAMES: Final = 20_000
_RST: Final = 0x4
_FIN: Final = 0x1
_DATA: Final = 0x8


@dataclass(frozen=True, slots=True)
class FlowKey:
    """This is what tells a flow from others.

    Args:
        protocol: ``tcp`` or ``udp``.
        version: of IP.
        local: the guest's address.
        local_port: the guest's port.
        remote: address of the other end.
        remote_port: port of the other end.
    """

    protocol: str
    version: int
    local: str
    local_port: int
    remote: str
    remote_port: int


@dataclass(slots=True)
class FlowRecord:
    """This is what was seen of a flow.

    Args:
        first_round: the round in which its first packet was read.
        last_round: the round in which the last packet of the guest's own was read that a socket must have
            sent; -1 where there was none.
        packets_out: that the guest has sent.
        packets_in: that it was sent.
        bytes_out: of whole frames, likewise.
        bytes_in: of whole frames, likewise.
    """

    first_round: int
    last_round: int = -1
    packets_out: int = 0
    packets_in: int = 0
    bytes_out: int = 0
    bytes_in: int = 0


class FlowTable:
    """This keeps the flows of a machine's network card.

    Attributes:
        flows: by what tells them apart, the oldest first.
        names: the name that an address was last told for.
        others: packets that are neither of TCP nor of UDP, or no whole ones.
        dropped: flows that were forgotten, as there were too many.
    """

    def __init__(self) -> None:
        self.flows: OrderedDict[FlowKey, FlowRecord] = OrderedDict()
        self.names: OrderedDict[str, str] = OrderedDict()
        self.others = 0
        self.dropped = 0

    def note(self, packet: Packet | None, size: int, *, sent: bool, now: int) -> None:
        """This takes in a packet.

        Args:
            packet: None for one of another kind.
            size: bytes of its frame.
            sent: whether the guest has sent it, as QEMU tells, whatever its addresses say.
            now: the number of the round in which it was read.
        """
        if packet is None:
            self.others += 1
            return
        near = packet.source, packet.source_port
        far = packet.target, packet.target_port
        ends = (*near, *far) if sent else (*far, *near)
        key = FlowKey(packet.protocol, packet.version, *ends)
        record = self.flows.get(key)
        if record is None:
            record = self.flows[key] = FlowRecord(now)
            if len(self.flows) > _MAX_FLOWS:
                self.flows.popitem(last=False)
                self.dropped += 1
        if sent:
            record.packets_out += 1
            record.bytes_out += size
            # A kernel answers by itself what no socket waits for, and what one has left.
            if not packet.flags & (_RST | _FIN) and (packet.payload or packet.flags & _DATA):
                record.last_round = now
        else:
            record.packets_in += 1
            record.bytes_in += size
        if packet.protocol == "udp" and packet.source_port == PORT:
            self._learn(packet.payload)

    def _learn(self, message: bytes) -> None:
        for address, name in names_in(message):
            self.names[address] = name
            self.names.move_to_end(address)
        while len(self.names) > _MAX_NAMES:
            self.names.popitem(last=False)
