"""How one debugger is spoken to: threads with or without their process, stop replies, the list of vCPUs.

References: GDB manual, "Stop Reply Packets", "thread-id syntax", "General Query Packets" (``qSupported``,
``qfThreadInfo``).
"""

from collections.abc import Sequence
from typing import Final

from qvmi.gdbstub.packets import Exited, StopReason, StopReply, ThreadId
from qvmi.manager.gateways.rsp_rules import PACKET_SIZE

__all__ = ["Dialect", "in_words"]

_THREADS_AT_ONCE: Final = 100
"""Threads in one packet: 20 digits and a comma each, at most, in 4 KiB."""


# What frames packets, and repeats in them: gdb undoes no escapes in an error.
_MARKS: Final = str.maketrans(dict.fromkeys("#$}*", "?"))
_MOST_WORDS: Final = 400
"""Letters of an error: a debugger shows them on one line."""


def in_words(why: str) -> bytes:
    """This is an error that says why, which debuggers show as it is."""
    plain = why.translate(_MARKS).encode("ascii", "replace").decode()
    return b"E." + "".join(one for one in plain if one.isprintable())[:_MOST_WORDS].encode()


class Dialect:
    """This is what one debugger understands.

    Attributes:
        multiprocess: it names processes with its threads.
    """

    def __init__(self) -> None:
        self.multiprocess = False
        self._listed = 0

    def features(self) -> bytes:
        """This is what is offered to it."""
        offered = b"PacketSize=%x;qXfer:features:read+;vContSupported+" % PACKET_SIZE
        return offered + (b";multiprocess+" if self.multiprocess else b"")

    def thread(self, thread: ThreadId) -> bytes:
        """This names a vCPU."""
        known = thread if self.multiprocess else ThreadId(thread.thread)
        return str(known).encode()

    def stop(self, stop: StopReply | Exited) -> bytes:
        """This says that the guest stands still, or that the machine has ended."""
        if isinstance(stop, Exited):
            return b"%c%02x" % (b"X" if stop.by_force else b"W", stop.status & 0xFF)
        said = b"T%02x" % (stop.signal & 0xFF)
        if stop.thread is not None:
            said += b"thread:%b;" % self.thread(stop.thread)
        if stop.reason is not StopReason.SIGNAL and stop.address is not None:
            said += b"%b:%x;" % (stop.reason.value.encode(), stop.address)
        return said

    def threads(self, threads: Sequence[ThreadId], *, first: bool) -> bytes:
        """This is the next part of the list of vCPUs, from its beginning or behind the last part."""
        start = 0 if first else self._listed
        part = threads[start : start + _THREADS_AT_ONCE]
        self._listed = start + len(part)
        return b"m" + b",".join(map(self.thread, part)) if part else b"l"
