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
_MAX_PAUSE: Final = 8
"""Rounds without a packet after which nobody can tell whether it is still the same socket that sends."""
_LASTING_ROUNDS: Final = 3
"""Rounds with packets that make a spell: two may be of two sockets with the same ends."""
_RST: Final = 0x4
_SYN: Final = 0x2
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
        last_round: the round in which the last packet was read that only a socket can have sent; -1 where
            there was none.
        start: the round in which the spell of such packets began that this one is of.
        rounds: how many rounds of this spell had such packets.
        lasting: first and last round of the longest spell so far; None where none was long enough.
        packets_out: that the guest has sent.
        packets_in: that it was sent.
        bytes_out: of whole frames, likewise.
        bytes_in: of whole frames, likewise.
    """

    last_round: int = -1
    start: int = -1
    rounds: int = 0
    lasting: tuple[int, int] | None = None
    packets_out: int = 0
    packets_in: int = 0
    bytes_out: int = 0
    bytes_in: int = 0

    def lives(self, now: int) -> None:
        """This takes note of a packet that only a socket can have sent.

        Ends are used again: after a pause it may be another socket's.
        """
        if self.last_round < 0 or now - self.last_round > _MAX_PAUSE:
            self.start, self.rounds = now, 1
        elif now != self.last_round:
            self.rounds += 1
        self.last_round = now
        longest = 0 if self.lasting is None else self.lasting[1] - self.lasting[0]
        if self.rounds >= _LASTING_ROUNDS and now - self.start > longest:
            self.lasting = self.start, now


class FlowTable:
    """This keeps the flows of a machine's network card.

    Args:
        names: what is known of names from before, which this adds to; None for nothing.

    Attributes:
        flows: by what tells them apart, the oldest first.
        names: the name that an address was last told for.
        others: packets that are neither of TCP nor of UDP, or no whole ones.
        dropped: flows that were forgotten, as there were too many.
    """

    def __init__(self, names: OrderedDict[str, str] | None = None) -> None:
        self.flows: OrderedDict[FlowKey, FlowRecord] = OrderedDict()
        self.names: OrderedDict[str, str] = OrderedDict() if names is None else names
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
            record = self.flows[key] = FlowRecord()
            if len(self.flows) > _MAX_FLOWS:
                self.flows.popitem(last=False)
                self.dropped += 1
        if sent:
            record.packets_out += 1
            record.bytes_out += size
            if packet.flags & _SYN:
                record.last_round = -1  # another connection begins
            # A kernel answers by itself what no socket waits for, and what one has left.
            elif not packet.flags & (_RST | _FIN) and (packet.payload or packet.flags & _DATA):
                record.lives(now)
        else:
            record.packets_in += 1
            record.bytes_in += size
        # What the guest itself sends as an answer names nothing: it would name what it likes.
        if not sent and packet.protocol == "udp" and packet.source_port == PORT:
            self._learn(packet.payload)

    def _learn(self, message: bytes) -> None:
        for address, name in names_in(message):
            self.names[address] = name
            self.names.move_to_end(address)
        while len(self.names) > _MAX_NAMES:
            self.names.popitem(last=False)
