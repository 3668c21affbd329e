"""qemu.qmp's client, with its replies routed to futures and nothing in it without bound.

References: QEMU ``docs/interop/qmp-spec.rst``; qemu.qmp 0.0.6 ``protocol.py``, which names the
methods that are overridden here as the ones to extend. Why they are, with figures:
``docs/adr/0010-qmp-events.md``.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
from qemu.qmp import Message, QMPClient
from qemu.qmp.error import ProtocolError

from qvmi.errors import QmpCommandFailed, QmpProtocolError

__all__ = ["MAX_MESSAGE", "Client", "Failure", "Reply", "result_of"]

MAX_MESSAGE: Final = 10 << 20
"""The longest message that is accepted, in bytes; as in libvirt.

The longest replies here are ``info registers -a`` (1.3 KB for each vCPU, 6 KB in 64-bit mode with
AVX-512) and ``info mtree -f`` (some 100 KB with 200 devices).
"""

# QEMU reads 8 requests ahead (QMP_REQ_QUEUE_LEN_MAX); one that owes this many answers is stuck.
_MAX_UNANSWERED: Final = 256

_NEGOTIATION: Final = 0


class Failure(msgspec.Struct, frozen=True):
    """This is QEMU's refusal of a command."""

    kind: str = msgspec.field(name="class")
    desc: str


class _Timestamp(msgspec.Struct, frozen=True):
    seconds: int
    microseconds: int


class Reply(msgspec.Struct, frozen=True):
    """This is one message from QEMU: an answer (`result` or `error`) or an event."""

    id: object = None
    result: msgspec.Raw = msgspec.field(name="return", default_factory=msgspec.Raw)
    error: Failure | None = None
    event: str | None = None
    data: dict[str, object] = {}
    timestamp: _Timestamp | None = None

    @property
    def at(self) -> float:
        """This is when an event happened, in seconds since the epoch; QEMU's -1 becomes 0.0."""
        if self.timestamp is None or self.timestamp.seconds < 0:
            return 0.0
        return self.timestamp.seconds + self.timestamp.microseconds / 1e6


def result_of(command: str, reply: Reply) -> object:
    """This is the value that QEMU returned.

    Raises:
        QmpCommandFailed: QEMU refused the command.
        QmpProtocolError: the answer holds neither a value nor a refusal.
    """
    if reply.error is not None:
        raise QmpCommandFailed(command, reply.error.kind, reply.error.desc)
    try:
        return msgspec.json.decode(reply.result)
    except (ValueError, RecursionError) as error:
        raise QmpProtocolError(command, f"no value in the answer: {error}") from error


class Client(QMPClient):
    """This speaks QMP over a socket: `connect`, then `start`, then `ask`."""

    def __init__(self) -> None:
        super().__init__(readbuflen=MAX_MESSAGE)
        # The negotiation goes out together with the first commands (`start`): a round trip less.
        self.negotiate = False
        self._on_event: Callable[[Reply], None] | None = None
        self._answers: dict[int, asyncio.Future[Reply | None]] = {}
        self._slots = asyncio.Semaphore(_MAX_UNANSWERED)
        self._over = False
        self._corked: list[bytes] = []
        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder(Reply)
        self._last_id = _NEGOTIATION

    def start(self, on_event: Callable[[Reply], None]) -> None:
        """This enters command mode; QEMU's refusal would end the session.

        Args:
            on_event: called with each event; must neither wait nor raise.
        """
        self._on_event = on_event
        offered = self.greeting.QMP.capabilities if self.greeting else ()
        # With "oob" QEMU reads ahead; without, it leaves each command in the socket until the one
        # before is done.
        arguments = {"enable": ["oob"]} if "oob" in offered else {}
        self._post(_NEGOTIATION, "qmp_capabilities", arguments)

    async def ask(self, command: str, arguments: Mapping[str, object]) -> Reply | None:
        """This sends a command and waits for its answer; None when the session ended first.

        A caller that is cancelled leaves the session usable: the answer is thrown away.

        Raises:
            TypeError: the arguments cannot be written as JSON.
        """
        await self._slots.acquire()
        if self._over:
            self._slots.release()
            return None
        self._last_id += 1
        try:
            self._post(self._last_id, command, arguments)
        except TypeError:
            self._slots.release()
            raise
        answer: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()
        self._answers[self._last_id] = answer
        return await answer

    def let_go(self) -> None:
        """This closes our descriptor of the connection, which a duplicate keeps open."""
        if self._writer is not None:
            self._writer.transport.abort()

    def abandon(self) -> None:
        """This wakes everyone who still waits for an answer; later questions get none."""
        self._over = True
        for answer in self._answers.values():
            self._slots.release()
            if not answer.done():
                answer.set_result(None)
        self._answers.clear()

    def _post(self, number: int, command: str, arguments: Mapping[str, object]) -> None:
        request = {"execute": command, "arguments": arguments, "id": number}
        encoded = self._encoder.encode(request)
        if not self._corked:
            asyncio.get_running_loop().call_soon(self._uncork, 0)
        self._corked.append(encoded)

    def _uncork(self, known: int) -> None:
        """This sends what was asked, as soon as a turn of the event loop brings no more questions.

        Each write wakes QEMU, which costs more than what it is woken for: commands that are asked
        by tasks of tasks, and the negotiation before them, go out together.
        """
        if len(self._corked) > known:
            asyncio.get_running_loop().call_soon(self._uncork, len(self._corked))
            return
        if self._writer is not None:
            self._writer.write(b"".join(encoded + b"\n" for encoded in self._corked))
        self._corked.clear()

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        return msg

    async def _do_recv(self) -> Message:
        try:
            line = await self._readline()
        except ValueError as error:
            raise ProtocolError(f"a message longer than {MAX_MESSAGE} bytes") from error
        if not line.endswith(b"\n"):
            raise EOFError
        return Message(line, eager=False)

    async def _on_message(self, msg: Message) -> None:
        try:
            reply = self._decoder.decode(bytes(msg))
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"a message that cannot be read: {error}") from error
        if reply.event is not None:
            if self._on_event is not None:
                self._on_event(reply)
        elif isinstance(reply.id, int) and reply.id in self._answers:
            self._slots.release()
            answer = self._answers.pop(reply.id)
            if not answer.done():
                answer.set_result(reply)
        elif reply.error is not None:
            # Nobody waits for it: the negotiation was refused, or QEMU could not parse a request.
            raise ProtocolError(f"QEMU refused the session: {reply.error.desc}")
