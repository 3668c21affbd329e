"""Sockets that nobody who is seen has open, and sockets that the kernel's tables do not show.

``ss`` and /proc/net read the kernel's tables of sockets, and the descriptors of processes lead to them, too.
A socket that has an inode was made by a program; where no process that is seen has it open, one that is not
seen has: the table of pids may still lead to it. One that is open, and in no table, is hidden from whoever
asks the tables.

References: net/ipv4/inet_hashtables.c, net/packet/af_packet.c, net/ipv4/raw.c; MITRE ATT&CK T1014 Rootkit,
T1040 Network Sniffing.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final

from qvmi.addr import Va
from qvmi.codepacks.codepack import Finding, Observation, Severity
from qvmi.codepacks.detectors.process_evidence import identity, seen, short, told
from qvmi.codepacks.detectors.seen_twice import seen_twice
from qvmi.errors import WalkFailed
from qvmi.memory.physical import PhysicalMemory
from qvmi.policy import Grant
from qvmi.semantics.guest_os import GuestOS, Process, Socket

__all__ = ["SOCKET_FACTS", "UNDER_WAY_S", "HiddenSockets", "unheld_sockets"]

_CONNECTED: Final = frozenset({"tcp", "tcp6"})
_TABLED_STATES: Final = frozenset({"LISTEN", "ESTABLISHED", "CLOSE_WAIT", "SYN_SENT"})
_DATAGRAMS: Final = frozenset({"udp", "udp6", "udplite", "udplite6"})
_RAW: Final = frozenset({"raw", "raw6", "packet"})
UNDER_WAY_S: Final = 5.0
"""Longest time for which a socket is believed to be under way in a message, or being closed."""
SOCKET_FACTS: Final = ("protocol", "local", "remote", "state", "inode", "namespace")

MAX_ASKED: Final = 64
"""Processes off the task list that are asked for their sockets; `hidden-processes` tells of each of them."""

SNIFFERS: Final = (
    *("dhclient", "dhcpcd", "udhcpc", "NetworkManager", "systemd-networkd", "systemd-network"),
    *(
        "tcpdump",
        "dumpcap",
        "tshark",
        "arping",
        "ping",
        "ping6",
        "wpa_supplicant",
        "lldpd",
        "hostapd",
    ),
)


@dataclass(frozen=True, slots=True)
class HiddenSockets:
    """This compares the kernel's tables of sockets with the descriptors of processes.

    Args:
        interval_s: from one look to the next.
        sniffers: names of processes that may have raw and packet sockets.
    """

    interval_s: float = 1.0
    sniffers: Sequence[str] = SNIFFERS

    @property
    def name(self) -> str:
        """This is its name on the bus."""
        return "hidden-sockets"

    @property
    def grants(self) -> frozenset[Grant]:
        """It only reads."""
        return frozenset({Grant.READ_MEMORY})

    def inspect(self, guest: GuestOS, memory: PhysicalMemory) -> Iterable[Finding]:  # noqa: ARG002 - the contract gives it
        """This looks once, and where the two disagree once more: a finding is in both answers."""
        processes = {process.pid: process for process in guest.processes()}
        return seen_twice(partial(self._disagreements, processes), guest)

    def _disagreements(self, processes: dict[int, Process], guest: GuestOS) -> list[Finding]:
        every = guest.sockets()
        tables = guest.tabled_sockets()
        tabled = {socket.address for socket in tables}
        unheld = unheld_sockets(every)
        holders = _hidden_holders(guest, processes) if unheld else {}
        gaps = len(every.gaps)
        findings = [_unheld(one, holders.get(one.address), gaps=gaps) for one in unheld]
        for socket in every:
            if socket.pid is None:
                continue
            if socket.address not in tabled and not tables.gaps:
                findings += _untabled(socket, processes.get(socket.pid), count=len(tabled))
            findings += self._sniffing(socket, processes.get(socket.pid))
        return findings

    def _sniffing(self, socket: Socket, process: Process | None) -> Iterator[Finding]:
        if process is None or socket.protocol not in _RAW or process.name in self.sniffers:
            return
        yield Finding(
            claim=f"{told(process)} has a {socket.protocol} socket, and may read or forge packets",
            severity=Severity.LOW,
            technique="T1040",
            key=f"{socket.protocol} socket: {identity(process)}",
            evidence=(seen("files_struct.fdt", socket, ("pid", "fd", *SOCKET_FACTS)),),
        )


def _named(socket: Socket) -> str:
    connected = socket.remote and not socket.remote.endswith(":0")
    remote = f" to {short(socket.remote)}" if connected else ""
    return f"the {socket.protocol} socket {short(socket.local)}{remote} ({socket.state})"


def _is_in_a_table(socket: Socket) -> bool:
    """This tells whether the kernel keeps such a socket in one of its tables, once it is as it is."""
    if socket.protocol in _CONNECTED:
        return socket.state in _TABLED_STATES
    if socket.protocol in _DATAGRAMS:
        return not socket.local.endswith(":0")
    return socket.protocol in _RAW


def unheld_sockets(sockets: Iterable[Socket]) -> list[Socket]:
    """These are the sockets that nobody who is listed has open, though a program made them.

    One without an inode is the kernel's own, or of a connection that its process has left.
    """
    kinds = _CONNECTED | _DATAGRAMS | _RAW
    return [one for one in sockets if one.pid is None and one.inode and one.protocol in kinds]


@dataclass(frozen=True, slots=True)
class _Holder:
    """This is who has a socket, and at which descriptor."""

    process: Process
    fd: int | None


def _hidden_holders(guest: GuestOS, listed: Mapping[int, Process]) -> dict[Va, _Holder]:
    """These are who have sockets among those who have a pid and are not on the list of tasks."""
    known = {identity(process) for process in listed.values()}
    try:
        numbered = guest.process_ids()
    except WalkFailed:  # whose socket it is stays unknown, but that it is nobody's does not
        return {}
    hidden = (one for one in numbered if identity(one) not in known)
    holders: dict[Va, _Holder] = {}
    for process in islice(hidden, MAX_ASKED):
        try:
            rows = guest.sockets(process)
        except WalkFailed:  # it has ended meanwhile
            continue
        for socket in rows:
            holders.setdefault(socket.address, _Holder(process, socket.fd))
    return holders


def _unheld(socket: Socket, holder: _Holder | None, *, gaps: int) -> Finding:
    """This tells of a socket that a program made, and that nobody who is listed has open."""
    claim = f"{_named(socket)} is open, but no process that is seen has it"
    evidence = [
        seen("tables of sockets", socket, SOCKET_FACTS),
        Observation(view="files_struct.fdt", present=False, facts={"gaps": gaps}),
    ]
    if holder is not None:
        claim += f": {told(holder.process)} has, which is off the task list"
        who = ("pid", "ppid", "uid", "name")
        evidence.append(seen("init_pid_ns.idr", holder.process, who, fd=holder.fd))
    return Finding(
        claim=claim,
        severity=Severity.MEDIUM if gaps and holder is None else Severity.HIGH,
        technique="T1014",
        key=f"unheld socket: {socket.address:#x} {socket.inode}",
        evidence=tuple(evidence),
        settle_s=UNDER_WAY_S,
    )


def _untabled(socket: Socket, process: Process | None, *, count: int) -> Iterator[Finding]:
    """This tells of a socket that a process has open, and that its table lacks."""
    if process is None or not _is_in_a_table(socket):
        return
    yield Finding(
        claim=f"{_named(socket)} of {told(process)} is in no table: ss does not show it",
        severity=Severity.HIGH,
        technique="T1014",
        key=f"untabled socket: {socket.address:#x} {socket.inode}",
        evidence=(
            seen("files_struct.fdt", socket, ("pid", "fd", *SOCKET_FACTS)),
            Observation(view="tables of sockets", present=False, facts={"sockets": count}),
        ),
        settle_s=UNDER_WAY_S,
    )
