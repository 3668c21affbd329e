"""What the packets say: requests that are built and replies that are read, without I/O.

References: GDB manual, "Packets", "Stop Reply Packets", "General Query Packets"; QEMU ``gdbstub.c`` and
``docs/system/gdb.rst`` (``Qqemu.PhyMemMode``). QEMU 7.2 answers some unknown requests twice (all that
begin with ``b``), so nothing is sent that is not named here.
"""

import re
from binascii import unhexlify
from collections.abc import Iterable, Mapping
from enum import Enum, IntEnum
from typing import Final

import msgspec

from qvmi.errors import GdbstubProtocolError, GdbstubRequestFailed
from qvmi.gdbstub.rsp import MAX_PACKET

__all__ = [
    "ANY_THREAD",
    "CURRENT_THREAD",
    "FIRST_THREADS",
    "MAX_VCPUS",
    "NEXT_THREADS",
    "PHYSICAL",
    "READ_REGISTERS",
    "SUPPORTED",
    "VIRTUAL",
    "WHY_STOPPED",
    "BreakpointKind",
    "Exited",
    "Features",
    "Resume",
    "StopReason",
    "StopReply",
    "ThreadId",
    "breakpoint_request",
    "check_ok",
    "detach_request",
    "hex_data",
    "is_features",
    "is_stop",
    "monitor_request",
    "parse_current_thread",
    "parse_features",
    "parse_stop",
    "parse_threads",
    "read_document",
    "read_memory",
    "read_register",
    "refusal",
    "resume_request",
    "select_thread",
    "strange",
    "write_memory",
    "write_register",
]

MAX_VCPUS: Final = 4096
"""The most vCPUs that are listed: the largest number of any x86 machine type of QEMU 10."""

SUPPORTED: Final = b"qSupported:multiprocess+;swbreak+;hwbreak+;vContSupported+"
"""Begins a session; idempotent, and the only request that is answered with a ``PacketSize``."""

WHY_STOPPED: Final = b"?"
"""Asks for a stop reply. QEMU removes all breakpoints and watchpoints when it hears this."""

PHYSICAL: Final = b"Qqemu.PhyMemMode:1"
"""From here on addresses are physical, even for the next client."""

VIRTUAL: Final = b"Qqemu.PhyMemMode:0"
"""From here on addresses are those of the selected vCPU."""

READ_REGISTERS: Final = b"g"
"""Reads the core registers of the selected vCPU, one after another as the target description says."""

CURRENT_THREAD: Final = b"qC"
"""Asks for the first vCPU of the process that the stub speaks of. QEMU 11.1 tells none on `WHY_STOPPED`."""

FIRST_THREADS: Final = b"qfThreadInfo"
NEXT_THREADS: Final = b"qsThreadInfo"

_OK: Final = b"OK"
_CURRENT: Final = b"QC"
_SHOWN: Final = 40  # bytes of a request or reply, in errors
_LEAST_PACKET: Final = 512  # a stub that takes less is none of QEMU's
_WRITE_HEADER: Final = 64  # bytes; `M`, two numbers of 16 digits, a comma and a colon take 35
_ERROR: Final = re.compile(rb"E(?:[0-9a-fA-F]{2}|\..*)", re.DOTALL)
_HEX_NUMBER: Final = re.compile(rb"[0-9a-fA-F]{1,16}")
_THREAD: Final = re.compile(
    rb"(?:p(?P<process>-1|[0-9a-fA-F]{1,8})\.)?(?P<thread>-1|[0-9a-fA-F]{1,8})"
)


class ThreadId(msgspec.Struct, frozen=True, order=True):
    """This is how the stub names a vCPU: QEMU's number of it plus 1, in a process.

    Args:
        thread: -1 for all, 0 for any.
        process: a cluster of vCPUs, 1 on machines with one; None where the stub does not tell.
    """

    thread: int
    process: int | None = None

    @property
    def vcpu(self) -> int:
        """This is QEMU's number of the vCPU."""
        return self.thread - 1

    def __str__(self) -> str:
        thread = "-1" if self.thread < 0 else f"{self.thread:x}"
        return thread if self.process is None else f"p{self.process:x}.{thread}"


ANY_THREAD: Final = ThreadId(0)


class BreakpointKind(IntEnum):
    """This is what a breakpoint waits for; the value is the digit behind ``Z``."""

    SOFTWARE = 0
    HARDWARE = 1
    WRITE = 2
    READ = 3
    ACCESS = 4


class Resume(Enum):
    """This is how a vCPU goes on; one that no action names stands still."""

    CONTINUE = b"c"
    STEP = b"s"


class StopReason(Enum):
    """This is why a vCPU stands still, in the stub's own word where it has one."""

    SIGNAL = ""
    SOFTWARE_BREAKPOINT = "swbreak"
    HARDWARE_BREAKPOINT = "hwbreak"
    WRITE_WATCHPOINT = "watch"
    READ_WATCHPOINT = "rwatch"
    ACCESS_WATCHPOINT = "awatch"


_REASONS: Final[Mapping[str, StopReason]] = {r.value: r for r in StopReason if r.value}
_WATCHPOINTS: Final = frozenset({
    StopReason.WRITE_WATCHPOINT,
    StopReason.READ_WATCHPOINT,
    StopReason.ACCESS_WATCHPOINT,
})  # fmt: skip


class StopReply(msgspec.Struct, frozen=True):
    """This says that the guest stands still.

    Args:
        signal: 5 (TRAP) after a step or at a breakpoint, 2 (INT) after an interrupt or another's stop.
        thread: the vCPU it is about, None where the stub does not tell.
        reason: QEMU tells watchpoints apart, but no breakpoint from a step.
        address: what was accessed, for a watchpoint.
    """

    signal: int
    thread: ThreadId | None = None
    reason: StopReason = StopReason.SIGNAL
    address: int | None = None


class Exited(msgspec.Struct, frozen=True):
    """This says that the machine ended, by itself (``W``) or by force (``X``)."""

    status: int
    by_force: bool


class Features(msgspec.Struct, frozen=True):
    """This is what the stub offers.

    Args:
        packet_size: the longest packet that it takes and gives, in bytes.
        offered: the names that it gave with a ``+``.
    """

    packet_size: int
    offered: frozenset[str] = frozenset()

    @property
    def most_read(self) -> int:
        """This is how much memory one packet can bring: two digits a byte."""
        return self.packet_size // 2

    @property
    def most_written(self) -> int:
        """This is how much memory one packet can carry behind ``M`` and two numbers."""
        return (self.packet_size - _WRITE_HEADER) // 2


# ------------------------------------------------------------------------------------------- requests


def select_thread(thread: ThreadId) -> bytes:
    """This chooses the vCPU of the requests that follow, for registers and virtual memory."""
    return b"Hg%b" % str(thread).encode()


def read_memory(address: int, size: int) -> bytes:
    """This reads memory; the reply is `hex_data` or a `refusal`."""
    return b"m%x,%x" % (address, size)


def write_memory(address: int, data: bytes) -> bytes:
    """This writes memory; the reply is ``OK`` or a `refusal`."""
    return b"M%x,%x:%b" % (address, len(data), data.hex().encode())


def read_register(number: int) -> bytes:
    """This reads one register. QEMU knows the request once ``target.xml`` was read."""
    return b"p%x" % number


def write_register(number: int, value: bytes) -> bytes:
    """This writes one register, in the guest's byte order; as `read_register`."""
    return b"P%x=%b" % (number, value.hex().encode())


def breakpoint_request(kind: BreakpointKind, address: int, size: int, *, insert: bool) -> bytes:
    """This inserts or removes a breakpoint or watchpoint.

    Args:
        kind: what it waits for.
        address: virtual.
        size: of the watched range, or of the instruction that is replaced; QEMU ignores the latter.
        insert: else it is removed.
    """
    return b"%c%d,%x,%x" % (b"Z" if insert else b"z", kind, address, size)


def resume_request(actions: Iterable[tuple[ThreadId | None, Resume]]) -> bytes:
    """This lets vCPUs go on; None stands for all that no action before it names."""
    words = [
        how.value if thread is None else b"%b:%b" % (how.value, str(thread).encode())
        for thread, how in actions
    ]
    return b"vCont;" + b";".join(words)


def detach_request(process: int | None) -> bytes:
    """This lets go of a process; when it was the last one the guest runs, whoever had stopped it."""
    return b"D" if process is None else b"D;%x" % process


def read_document(name: str, offset: int, size: int) -> bytes:
    """This reads a part of the target description; reading ``target.xml`` makes registers readable."""
    return b"qXfer:features:read:%b:%x,%x" % (name.encode(), offset, size)


def monitor_request(line: str) -> bytes:
    """This runs a line of the human monitor, which may do anything QEMU can, such as writing files."""
    return b"qRcmd," + line.encode().hex().encode()


# -------------------------------------------------------------------------------------------- replies


def is_stop(body: bytes) -> bool:
    """This tells whether a packet is a stop reply, which may come unasked before any answer."""
    return body[:1] in {b"T", b"S", b"W", b"X"}


def is_features(body: bytes) -> bool:
    """This tells whether a packet is the answer to `SUPPORTED`, and to nothing else."""
    return body.startswith(b"PacketSize=")


def refusal(request: bytes, body: bytes) -> GdbstubRequestFailed | None:
    """This is the error that a reply stands for; None for any other reply."""
    if not body:
        return GdbstubRequestFailed(_shown(request), None)
    if _ERROR.fullmatch(body):
        return GdbstubRequestFailed(_shown(request), body[:_SHOWN].decode("ascii", "replace"))
    return None


def check_ok(request: bytes, body: bytes) -> None:
    """This returns if the stub did what was asked.

    Raises:
        GdbstubRequestFailed: it refused.
        GdbstubProtocolError: it said something else.
    """
    if body == _OK:
        return
    raise refusal(request, body) or strange(request, body)


def hex_data(request: bytes, body: bytes, size: int) -> bytes:
    """This is the memory or register that a reply brings.

    Raises:
        GdbstubRequestFailed: the stub refused.
        GdbstubProtocolError: it sent something else, or another number of bytes.
    """
    if len(body) == 2 * size:
        try:
            return unhexlify(body)  # strict, other than bytes.fromhex, which skips blanks
        except ValueError:
            pass
    raise refusal(request, body) or strange(request, body)


def parse_features(body: bytes) -> Features:
    """This reads the reply to `SUPPORTED`.

    Raises:
        GdbstubRequestFailed: the stub refused.
        GdbstubProtocolError: it has no usable packet size.
    """
    words = body.split(b";")
    values = dict(word.split(b"=", 1) for word in words if b"=" in word)
    size = values.get(b"PacketSize", b"")
    if not _HEX_NUMBER.fullmatch(size) or int(size, 16) < _LEAST_PACKET:
        raise refusal(SUPPORTED, body) or strange(SUPPORTED, body)
    offered = {word[:-1].decode("ascii", "replace") for word in words if word.endswith(b"+")}
    return Features(min(int(size, 16), MAX_PACKET), frozenset(offered))


def parse_current_thread(body: bytes) -> ThreadId:
    """This reads the reply to `CURRENT_THREAD`.

    Raises:
        GdbstubRequestFailed: the stub refused.
        GdbstubProtocolError: it names no vCPU.
    """
    if not body.startswith(_CURRENT):
        raise refusal(CURRENT_THREAD, body) or strange(CURRENT_THREAD, body)
    return _thread(CURRENT_THREAD, body.removeprefix(_CURRENT))


def parse_threads(request: bytes, body: bytes) -> tuple[ThreadId, ...]:
    """This reads one part of the list of vCPUs; an empty part ends it.

    Raises:
        GdbstubRequestFailed: the stub refused.
        GdbstubProtocolError: it sent something else.
    """
    if body == b"l":
        return ()
    words = body[1:].split(b",")
    if not body.startswith(b"m") or len(words) > MAX_VCPUS:
        raise refusal(request, body) or strange(request, body)
    return tuple(_thread(request, word) for word in words)


def parse_stop(body: bytes) -> StopReply | Exited:
    """This reads a stop reply.

    Raises:
        GdbstubProtocolError: it has not the documented form.
    """
    digits = body[1:3]
    if len(digits) < len("05") or not _HEX_NUMBER.fullmatch(digits):
        raise strange(WHY_STOPPED, body)
    value = int(digits, 16)
    if body[:1] in {b"W", b"X"}:
        return Exited(value, by_force=body[:1] == b"X")
    if body[:1] == b"S":
        return StopReply(value)
    return _stop_with_details(value, body)


def _stop_with_details(signal: int, body: bytes) -> StopReply:
    thread, reason, address = None, StopReason.SIGNAL, None
    for pair in body[3:].split(b";"):
        key, _, value = pair.partition(b":")
        if key == b"thread":
            thread = _thread(WHY_STOPPED, value)
        known = _REASONS.get(key.decode("ascii", "replace"))
        if known is not None:
            reason = known
            address = _number(value, body) if known in _WATCHPOINTS else None
    return StopReply(signal, thread, reason, address)


def _number(digits: bytes, body: bytes) -> int:
    if not _HEX_NUMBER.fullmatch(digits):
        raise strange(WHY_STOPPED, body)
    return int(digits, 16)


def _thread(request: bytes, word: bytes) -> ThreadId:
    match = _THREAD.fullmatch(word)
    if match is None:
        raise strange(request, word)
    process = match["process"]
    return ThreadId(int(match["thread"], 16), None if process is None else int(process, 16))


def strange(request: bytes, body: bytes) -> GdbstubProtocolError:
    """This is the error for a reply that cannot be understood."""
    cut = "…" if len(body) > _SHOWN else ""
    return GdbstubProtocolError(_shown(request), f"strange answer {body[:_SHOWN]!r}{cut}")


def _shown(request: bytes) -> str:
    return request[:_SHOWN].decode("ascii", "replace")
