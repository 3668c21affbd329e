"""One conversation with a gdbstub, in which no reply can be taken for another's.

References: GDB manual, "Remote Protocol: Overview", "Stop Reply Packets"; QEMU ``gdbstub.c``
(``gdb_read_byte``, ``gdb_vm_state_change``), 7.2, and ``gdbstub/gdbstub.c``, 8.1.

Requests go out as exchanges: several packets in one write, which depend on nothing that was sent before
and leave the stub as it was. Exchanges of several tasks cannot mix, and one whose caller was cancelled
stays in line until its replies have come. Stop replies come at any time and are never answers.

A request that is sent while the guest runs stops the guest and is lost, so that all later replies would
be one too early. The channel sends none while it let the guest run itself; when somebody else did, it
notices by the stop reply, or (from QEMU 8.1 on) by a reply that does not come, and finds its place again by
a request whose answer cannot be mistaken.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, cast

from qvmi.errors import (
    GdbstubProtocolError,
    GdbstubTimeout,
    GuestRunning,
    MachineGone,
    QvmiError,
    UsageError,
)
from qvmi.gdbstub.packets import (
    SUPPORTED,
    WHY_STOPPED,
    Exited,
    StopReply,
    is_features,
    is_stop,
    parse_stop,
    refusal,
    strange,
)
from qvmi.gdbstub.rsp import INTERRUPT, Decoder, Event, Retransmit, frames

__all__ = ["ANSWER_TIMEOUT_S", "Channel", "Exchange"]

ANSWER_TIMEOUT_S: Final = 5.0
"""How long the replies of one exchange may take by default; as for a QMP command."""

# QEMU answers within milliseconds. From 8.1 on it does not tell when a request has stopped a running
# guest and is lost, so after this long that is worth asking.
_SILENCE_S: Final = 0.3

# The other side sees the end at its next turn; whoever waits for its turn there has another second.
_HANG_UP_S: Final = 1.0
# A stopped guest stops again only when it was let run, so more than a few mean a stub gone wild.
_MAX_STOPS: Final = 64
# Each task waits for its own exchanges, two at most; the rest are those of callers that gave up.
_MAX_WAITING: Final = 1024
# What a line of the human monitor may print, in bytes: `info registers -a` prints 6 KB a vCPU.
_MAX_CONSOLE: Final = 10 << 20

_NO_BODY: Final = b""
_OK: Final = b"OK"
_CONSOLE: Final = b"O"
# How packets begin that may be no answer: stop replies, console output, the answer to SUPPORTED.
_NO_ANSWER: Final = frozenset({b"T", b"S", b"W", b"X", b"O", b"P"})


class Exchange:
    """This is one write of several requests, and their replies as they come.

    Attributes:
        requests: the packets' bodies.
        replies: the answers so far, in the order of the requests.
        console: what the stub printed meanwhile, as hexadecimal digits.
        done: resolves to `replies` when there is one for each request.
    """

    __slots__ = ("console", "doing", "done", "replies", "requests")

    def __init__(self, doing: str, requests: Sequence[bytes]) -> None:
        self.doing = doing
        self.requests = requests
        self.replies: list[bytes] = []
        self.console = bytearray()
        self.done: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()

    @property
    def next_request(self) -> bytes:
        """This is the request that the next reply belongs to."""
        return self.requests[len(self.replies)]

    def fail(self, error: QvmiError) -> None:
        """This wakes the caller with an error, unless it has gone."""
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # seen: a caller that was cancelled just now will not look


class Channel(asyncio.Protocol):
    """This is the protocol of a connection to a gdbstub; it says nothing by itself.

    Attributes:
        running: the guest runs because it was told to here, and has not stopped since.
        stops_lost: stop replies that nobody fetched in time.
        greeted_by: the stop reply that came before the first answer: being connected to has stopped
            the guest. None when it stood still already, and from QEMU 8.1 on.
    """

    def __init__(self, target: str) -> None:
        self.running = False
        self.stops_lost = 0
        self.greeted_by: StopReply | Exited | None = None
        self._target = target
        self._decoder = Decoder()
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[Exchange] = deque()
        self._stops: deque[StopReply | Exited | QvmiError] = deque()
        self._news = asyncio.Event()
        self._gone = asyncio.Event()
        self._answered = False
        self._ending: Callable[[str], QvmiError] | None = None

    # ------------------------------------------------------------------------------- asyncio's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """This keeps the connection."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """This hands each packet on to where it belongs."""
        try:
            events, at = self._decoder.feed(data), 0
            while at < len(events):
                taken = self._take_plain(events[at:])
                if not taken:
                    self._take(events[at])
                at += taken or 1
        except GdbstubProtocolError as error:
            problem = error.problem
            self._end(lambda doing: GdbstubProtocolError(doing, problem))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """This tells everyone who waits."""
        self._end(MachineGone)

    # --------------------------------------------------------------------------------------- requests

    @property
    def target(self) -> str:
        """This is the address, as errors name it."""
        return self._target

    @property
    def ended(self) -> bool:
        """This tells whether the conversation is over."""
        return self._ending is not None

    @property
    def stop_is_waiting(self) -> bool:
        """This tells whether `next_stop` has an answer already."""
        return bool(self._stops)

    def begin(self, doing: str, requests: Sequence[bytes]) -> Exchange:
        """This sends requests in one write.

        Args:
            doing: what for, in errors.
            requests: the packets' bodies, as `qvmi.gdbstub.packets` builds them.

        Raises:
            GuestRunning: the guest runs; it must be interrupted first.
            MachineGone: the stub has closed the connection.
            GdbstubTimeout: too many requests are unanswered.
        """
        transport = self._usable(doing)
        if self.running:
            raise GuestRunning(doing, "the guest runs; interrupt it first")
        if len(self._waiting) >= _MAX_WAITING:
            raise GdbstubTimeout(doing, 0)
        return self._send(transport, Exchange(doing, requests))

    async def replies(
        self, exchange: Exchange, *, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> list[bytes]:
        """This waits for the replies, one for each request.

        Raises:
            GdbstubTimeout: they did not come in time.
            GuestRunning: somebody let the guest run, and a request was lost.
            GdbstubProtocolError: what came was no reply.
            MachineGone: the connection ended first.
        """
        silence = asyncio.get_running_loop().call_later(_SILENCE_S, self._find_place)
        try:
            async with asyncio.timeout(timeout_s):
                return await exchange.done
        except TimeoutError as error:
            self._find_place()
            raise GdbstubTimeout(exchange.doing, timeout_s) from error
        finally:
            silence.cancel()

    async def ask(
        self, doing: str, requests: Sequence[bytes], *, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> list[bytes]:
        """This is `begin` and `replies` in one."""
        return await self.replies(self.begin(doing, requests), timeout_s=timeout_s)

    # -------------------------------------------------------------------------------- running, stopping

    def resume(self, doing: str, request: bytes) -> None:
        """This lets the guest run; the next stop says how that ended, or that it was refused."""
        transport = self._usable(doing)
        if self.running:
            raise GuestRunning(doing, "the guest runs already")
        self._stops.clear()  # they are about a standstill that ends here
        self.running = True
        transport.write(frames([request]))

    def interrupt(self) -> None:
        """This stops the guest; the next stop says so."""
        self._usable("interrupt").write(INTERRUPT)

    async def next_stop(self) -> StopReply | Exited:
        """This waits until the guest stands still, or is what stopped it when nobody looked.

        Raises:
            GdbstubRequestFailed: the stub refused to let it run.
            MachineGone: the connection ended first.
        """
        while not self._stops:
            if self._ending is not None:
                raise self._ending("waiting for the guest to stop")
            self._news.clear()
            await self._news.wait()
        stop = self._stops.popleft()
        if isinstance(stop, QvmiError):
            raise stop
        return stop

    def connection(self) -> socket.socket:
        """This is the connection's socket, to ask the kernel about.

        Raises:
            MachineGone: it is closed.
        """
        found: socket.socket = self._usable("connection").get_extra_info("socket")
        return found

    def send_raw(self, data: bytes) -> None:
        """This sends bytes that nobody waits for an answer to."""
        if self._ending is None and self._transport is not None:
            self._transport.write(data)

    async def hang_up(self) -> None:
        """This closes the connection once the other side has seen that nothing more comes.

        By then a gateway has let go of the guest, and QEMU is free for the next debugger.
        """
        if self._ending is None and self._transport is not None:
            self._transport.write_eof()
            with suppress(TimeoutError):
                async with asyncio.timeout(_HANG_UP_S):
                    await self._gone.wait()
        await self.close()
        self._ending = self._closed

    async def close(self) -> None:
        """This closes the connection; the guest is left as it is."""
        if self._ending is None:
            self._end(self._closed)
        await asyncio.sleep(0)  # the transport tells of its end in the next turn of the loop

    def _closed(self, doing: str) -> QvmiError:
        return UsageError(f"{doing}: {self._target} was closed")

    # ----------------------------------------------------------------------------------------- packets

    def _usable(self, doing: str) -> asyncio.Transport:
        if self._ending is not None or self._transport is None:
            raise (self._ending or MachineGone)(doing)
        return self._transport

    def _send(self, transport: asyncio.Transport, exchange: Exchange) -> Exchange:
        self._waiting.append(exchange)
        transport.write(frames(exchange.requests))
        return exchange

    def _take_plain(self, events: Sequence[Event]) -> int:
        """This takes the events that are plain answers to one exchange, as most are, and counts them."""
        if not self._waiting:
            return 0
        exchange = self._waiting[0]
        part = events[: len(exchange.requests) - len(exchange.replies)]
        bodies = [
            event
            for event in part
            if type(event) is bytes and (event[:1] not in _NO_ANSWER or event == _OK)
        ]
        if len(bodies) != len(part):
            return 0
        exchange.replies += bodies
        self._answered = True
        self._complete(exchange)
        return len(bodies)

    def _take(self, body: Event) -> None:
        if not isinstance(body, bytes):
            self._trouble(body)
        elif is_stop(body) and not self._answers(WHY_STOPPED):
            self._stopped(body)
        elif body[:1] == _CONSOLE and body != _OK:
            self._print(body)
        elif is_features(body):
            self._placed(body)
        elif self._waiting:
            self._answer(body)
        elif self.running:
            self._refused(body)
        else:
            raise strange(_NO_BODY, body)

    def _answers(self, request: bytes) -> bool:
        return bool(self._waiting) and self._waiting[0].next_request == request

    def _answer(self, body: bytes) -> None:
        exchange = self._waiting[0]
        exchange.replies.append(body)
        self._answered = True
        self._complete(exchange)

    def _complete(self, exchange: Exchange) -> None:
        if len(exchange.replies) == len(exchange.requests):
            self._waiting.popleft()
            if not exchange.done.done():
                exchange.done.set_result(exchange.replies)

    def _stopped(self, body: bytes) -> None:
        stop = parse_stop(body)
        if not self._answered:
            self.greeted_by = self.greeted_by or stop
            return
        if len(self._stops) == _MAX_STOPS:
            self._stops.popleft()
            self.stops_lost += 1
        self._stops.append(stop)
        self._news.set()
        let_run_by_us, self.running = self.running, False
        if self._waiting and not let_run_by_us:
            # It ran behind our back. Either it was our request that stopped it, and is lost.
            self._find_place()

    def _refused(self, body: bytes) -> None:
        self.running = False
        self._stops.append(refusal(b"vCont", body) or strange(b"vCont", body))
        self._news.set()

    def _print(self, body: bytes) -> None:
        if self._waiting:
            console = self._waiting[0].console
            console += body[1:]
            if len(console) > _MAX_CONSOLE:
                raise GdbstubProtocolError("qRcmd", f"prints more than {_MAX_CONSOLE} bytes")
        # Else a program in the guest prints through semihosting: that is nobody's answer.

    # ----------------------------------------------------------------------------- finding one's place

    def _find_place(self) -> None:
        """This asks what only one reply can answer, unless that has been asked already."""
        asked = any(exchange.next_request == SUPPORTED for exchange in self._waiting)
        if self._ending is None and not self.running and not asked:
            doing = "finding the place"
            self._send(self._usable(doing), Exchange(doing, [SUPPORTED]))

    def _placed(self, body: bytes) -> None:
        """This gives up what was asked before, and has not been answered by now."""
        while self._waiting and not self._answers(SUPPORTED):
            lost = self._waiting.popleft()
            why = "somebody let the guest run meanwhile; it stands still again"
            lost.fail(GuestRunning(lost.doing, why))
        if not self._waiting:
            raise strange(_NO_BODY, body)
        self._answer(body)

    def _trouble(self, event: Event) -> None:
        if isinstance(event, Retransmit) and not self._answered:
            return  # a request that a former client has not ended
        raise GdbstubProtocolError("any packet", f"damaged on the way: {event!r:.80}")

    def _end(self, ending: Callable[[str], QvmiError]) -> None:
        if self._ending is not None:
            return
        self._ending = ending
        self.running = False
        for exchange in self._waiting:
            exchange.fail(ending(exchange.doing))
        self._waiting.clear()
        self._news.set()
        self._gone.set()
        if self._transport is not None:
            self._transport.abort()
