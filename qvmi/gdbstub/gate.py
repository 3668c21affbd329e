"""What a debugger may say to a gdbstub: bytes of gdb in, what passes and what is answered in its place out.

References: GDB manual, "Packets", "General Query Packets"; QEMU ``gdbstub.c``: ``k`` and ``vKill`` end QEMU,
``qRcmd`` is its whole monitor.

A packet that is not named here gets the answer that the protocol has for unknown ones. So nothing passes
that nobody has thought of.
"""

import re
from typing import Final

import msgspec

from qvmi.errors import GdbstubProtocolError
from qvmi.gdbstub.rsp import MAX_PACKET, frame

__all__ = ["Gate", "Passage"]


class Passage(msgspec.Struct, frozen=True, gc=False):
    """This is what becomes of some bytes of the debugger's.

    Args:
        to_stub: goes on to the stub.
        to_debugger: is said to the debugger in the stub's place.
        left: the debugger lets go; nothing behind that counts.
    """

    to_stub: bytes = b""
    to_debugger: bytes = b""
    left: bool = False


_START, _END = b"$"[0], b"#"[0]
_DIGITS: Final = 2  # hexadecimal, of the checksum
_PLAIN: Final = frozenset(b"+-\x03")
"""Acknowledgements, and the interrupt that stops a running guest."""

_LOOKS_OR_RUNS: Final = re.compile(
    rb"\?|g|p[0-9a-f]+|m[0-9a-f]+,[0-9a-f]+|x[0-9a-f]+,[0-9a-f]+|H[cg].*|T.*"
    rb"|qSupported.*|qXfer:\w+:read:.*|qC|q[fs]ThreadInfo|qThreadExtraInfo,.*|qAttached.*|qSymbol.*"
    rb"|vMustReplyEmpty|vCont[?;].*|[qQ]qemu\..*|[cs].*|[CS][0-9a-f]{2}.*|[zZ][0-4],.*",
    re.DOTALL,
)
_LEAVES: Final = re.compile(rb"D(?:;[0-9a-f]+)?|vKill;.*", re.DOTALL)
_KILL: Final = b"k"

_OK: Final = frame(b"OK")
_UNKNOWN: Final = frame(b"")
_NOT_GRANTED: Final = frame(b"O" + b"not granted: this session may not write\n".hex().encode())
_NEED_A_GRANT: Final = (
    (re.compile(rb"[GMPX].*", re.DOTALL), frame(b"E01")),
    (re.compile(rb"qRcmd,.*", re.DOTALL), _NOT_GRANTED + _OK),
)
"""What changes something, or is QEMU's monitor, and how it is refused."""


class Gate:
    """This lets a debugger look and break, and change something only where that was granted.

    It keeps `detach` and `kill` to itself: whoever opened it ends the session, and the guest lives on.

    Args:
        may_write: lets it write registers and memory, and use QEMU's monitor.
    """

    def __init__(self, *, may_write: bool) -> None:
        self._may_write = may_write
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """This is the number of bytes kept for a packet that has not ended."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Passage:
        """This takes bytes of the debugger's, however they are split.

        Raises:
            GdbstubProtocolError: bytes that no debugger sends.
        """
        self._buffer += data
        to_stub, to_debugger = bytearray(), bytearray()
        left = False
        while not left and (piece := self._next_piece()):
            passage = self._judge(piece)
            to_stub += passage.to_stub
            to_debugger += passage.to_debugger
            left = passage.left
        return Passage(bytes(to_stub), bytes(to_debugger), left)

    def _next_piece(self) -> bytes:
        """This takes one packet or single byte off the buffer; empty where none is whole."""
        buffer = self._buffer
        if not buffer:
            return b""
        size = 1
        if buffer[0] == _START:
            size = buffer.find(_END) + 1 + _DIGITS
            if size <= _DIGITS or size > len(buffer):
                if len(buffer) > MAX_PACKET:
                    raise GdbstubProtocolError("gdb", f"a packet longer than {MAX_PACKET} bytes")
                return b""
        elif buffer[0] not in _PLAIN:
            raise GdbstubProtocolError("gdb", f"bytes outside of a packet: {bytes(buffer[:40])!r}")
        piece = bytes(buffer[:size])
        del buffer[:size]
        return piece

    def _judge(self, piece: bytes) -> Passage:
        body = piece[1 : -1 - _DIGITS]
        if piece[0] != _START or _LOOKS_OR_RUNS.fullmatch(body):
            return Passage(to_stub=piece)
        if body == _KILL:
            return Passage(left=True)  # nobody waits for an answer
        if _LEAVES.fullmatch(body):
            return Passage(to_debugger=b"+" + _OK, left=True)
        refusals = (refusal for needed, refusal in _NEED_A_GRANT if needed.fullmatch(body))
        refusal = next(refusals, None)
        if refusal is not None and self._may_write:
            return Passage(to_stub=piece)
        return Passage(to_debugger=b"+" + (refusal or _UNKNOWN))
