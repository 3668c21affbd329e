"""Attaches to a gdbstub, and says who holds it where that cannot be.

References: QEMU ``gdbstub.c`` (``gdb_chr_event``): whoever is accepted stops the guest, which goes on
when the last process is detached from. A client that has to wait for another's end and gives up
is still accepted afterwards, so it leaves the request to detach behind.
"""

import asyncio
import re
from binascii import unhexlify
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from qvmi.errors import (
    AttachError,
    GdbstubBusy,
    GdbstubProtocolError,
    GdbstubRequestFailed,
    GdbstubTimeout,
    MachineGone,
    NotGdbstub,
)
from qvmi.gdbstub.channel import Channel, Exchange
from qvmi.gdbstub.packets import (
    CURRENT_THREAD,
    SUPPORTED,
    VIRTUAL,
    WHY_STOPPED,
    Exited,
    Features,
    ThreadId,
    check_ok,
    detach_request,
    monitor_request,
    parse_current_thread,
    parse_features,
    parse_stop,
)
from qvmi.gdbstub.rsp import frame
from qvmi.host.address import SocketAddress
from qvmi.host.peer import Peer, clients_at, look_at_peer
from qvmi.host.stream import no_answer, open_stream

__all__ = ["CONNECT_TIMEOUT_S", "Attached", "attach"]

CONNECT_TIMEOUT_S: Final = 3.0
"""How long connecting and the first answers may take; QEMU needs two milliseconds."""

# QEMU answers within milliseconds of accepting. After this long it is worth asking the kernel
# whether another client is being served.
_SILENCE_S: Final = 0.3
# The part of the caller's time that is kept back for finding out why nothing came.
_KEPT_BACK: Final = 0.15

_ASK_VERSION: Final = "info version"
_VERSION: Final = re.compile(rb"(\d{1,4})\.(\d{1,4})")
# "gdbstub: only send stop-reply packets when allowed to", QEMU 8.1: from there on a client is not
# told that being connected to has stopped the guest.
_SILENT_SINCE: Final = (8, 1)
# A client that was killed while it wrote leaves half a request to which the next bytes would be added.
# The acknowledgement makes the stub listen to more than the beginning of a packet; the second end is
# for a request that ended before its checksum did.
_END_OF_HALF_A_REQUEST: Final = b"+#00#00"
_IN_WORDS: Final = b"E."  # an error with a text for people
_MOST_WORDS: Final = 400
_HELLO: Final = (
    *(SUPPORTED, VIRTUAL, WHY_STOPPED, CURRENT_THREAD),
    monitor_request(_ASK_VERSION),
)


@dataclass(frozen=True, slots=True)
class Attached:
    """This is a stub that has been attached to: the guest stands still, without any breakpoint.

    Args:
        was_running: the guest ran before; None where this QEMU does not tell.
        current: the vCPU that the stub speaks of; its process is what is detached from.
    """

    channel: Channel
    features: Features
    was_running: bool | None
    current: ThreadId


async def attach(address: SocketAddress, *, timeout_s: float) -> Attached:
    """This connects and asks the first questions, which also undo what a crashed client has left.

    Raises:
        SocketUnreachable: nobody listens, or the socket may not be opened.
        GdbstubBusy: another debugger is being served.
        NotGdbstub: what listens there speaks something else, or is silent.
        AttachError: a gateway does not show the guest; says why.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s * (1 - _KEPT_BACK)
    # Looked up before connecting: a client in the queue stops the guest when its turn comes.
    holders = await asyncio.to_thread(clients_at, address)
    if holders:
        raise _held(address, holders)
    try:
        connection = await open_stream(address, deadline=deadline)
    except TimeoutError as error:
        raise no_answer(address) or _queue_full(address) from error
    loop = asyncio.get_running_loop()
    _, channel = await loop.create_connection(lambda: Channel(str(address)), sock=connection)
    try:
        return await _greet(address, channel, deadline)
    except BaseException:
        await _give_up(channel)
        raise


async def _greet(address: SocketAddress, channel: Channel, deadline: float) -> Attached:
    hello: Exchange | None = None
    try:
        channel.send_raw(_END_OF_HALF_A_REQUEST)
        hello = channel.begin("attach", _HELLO)
        await _await_first(address, channel, hello, deadline)
        left = max(deadline - asyncio.get_running_loop().time(), _SILENCE_S)
        answers = await channel.replies(hello, timeout_s=left)
        features = parse_features(answers[0])
        check_ok(VIRTUAL, answers[1])
        stopped = parse_stop(answers[2])
        current = parse_current_thread(answers[3])
    except GdbstubTimeout as error:
        raise NotGdbstub(str(address), "begins to answer, and does not end in time") from error
    except (GdbstubProtocolError, GdbstubRequestFailed) as error:
        raise NotGdbstub(str(address), f"no answer of a gdbstub: {error}") from error
    except MachineGone as error:
        if hello is not None:
            _raise_last_words(address, hello)
        raise NotGdbstub(str(address), "closes the connection without an answer") from error
    if isinstance(stopped, Exited):
        raise NotGdbstub(str(address), f"tells of no vCPU but {stopped}")
    return Attached(channel, features, _was_running(channel, hello), current)


def _raise_last_words(address: SocketAddress, hello: Exchange) -> None:
    """This raises AttachError with what a gateway has said before it hung up, if that is what it was."""
    last = hello.replies[-1] if hello.replies else b""
    if last.startswith(_IN_WORDS):
        words = last.removeprefix(_IN_WORDS)[:_MOST_WORDS].decode("ascii", "replace")
        printable = "".join(one for one in words if one.isprintable())
        raise AttachError(str(address), f"does not show the guest: {printable}")


def _was_running(channel: Channel, hello: Exchange) -> bool | None:
    if channel.greeted_by is not None:
        return True
    try:
        version = _VERSION.search(unhexlify(hello.console))
    except ValueError:
        return None
    if version is None or (int(version[1]), int(version[2])) >= _SILENT_SINCE:
        return None
    return False


async def _await_first(
    address: SocketAddress, channel: Channel, hello: Exchange, deadline: float
) -> None:
    """This waits for any sign of life, and finds out early why there is none."""
    loop = asyncio.get_running_loop()
    for until in (min(deadline, loop.time() + _SILENCE_S), deadline):
        await asyncio.wait({hello.done}, timeout=max(until - loop.time(), 0))
        if hello.done.done() or hello.replies:
            return
        peer = await asyncio.to_thread(look_at_peer, channel.connection())
        if peer.waiting and peer.holders:
            raise _held(address, peer.holders)
    raise _silence(address, peer)


def _held(address: SocketAddress, holders: Sequence[str]) -> GdbstubBusy:
    names = ", ".join(holders)
    reason = f"held by {names}, and a gdbstub serves one debugger at a time; end that one"
    return GdbstubBusy(str(address), reason)


def _queue_full(address: SocketAddress) -> GdbstubBusy:
    reason = "the queue of clients waiting for it is full; end one of them, or its holder"
    return GdbstubBusy(str(address), reason)


def _silence(address: SocketAddress, peer: Peer) -> AttachError:
    if peer.server is None:
        reason = "connected, but no answer: another debugger holds it, or it is no gdbstub"
        return GdbstubBusy(str(address), reason)
    if peer.server.is_qemu:
        reason = f"{peer.server} does not answer: it is stopped or hangs, or this is no gdbstub"
        return GdbstubBusy(str(address), reason)
    reason = f"{peer.server} listens there, which is no QEMU, and says nothing"
    return NotGdbstub(str(address), reason)


async def _give_up(channel: Channel) -> None:
    """This leaves without a session: a guest that was, or will be stopped by that goes on."""
    channel.send_raw(frame(detach_request(1)))
    await channel.close()
