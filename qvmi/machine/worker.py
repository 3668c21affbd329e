"""A synchronous call in a thread of its own, which ends at its next read once nobody wants it any more."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError as AnswerCancelled
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer
from contextlib import suppress
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any, Final, Never, TypeVar

from qvmi.addr import Pa, PaRange
from qvmi.errors import MachineGone, QueryTimeout
from qvmi.memory.physical import PhysicalMemory, Window

__all__ = ["WatchedMemory", "ask", "checkpoint", "in_worker"]

Result = TypeVar("Result")

_logger = logging.getLogger(__name__)

_ENDS_S: Final = 10.0
"""How long a call may go on after its end was asked for. Its next read ends it, within milliseconds
unless QEMU hangs; one that computes without reading cannot be ended, and is left to itself."""
_ANSWERS_S: Final = 60.0
"""How long an answer may take at most. The conversations have shorter limits of their own: this one
is for an event loop that was stopped, on which nothing ever ends."""


class QueryEnded(BaseException):
    """Nobody wants the result of this call any more.

    It is between a read and the end of its thread. Like a cancellation it is no error, and what
    handles errors of the guest must not take it for one.
    """


class _Worker:
    """This is one call, as its thread and those who wait for it know it."""

    def __init__(self) -> None:
        self.withdrawn = False
        self._asking: asyncio.Task[bytes] | None = None

    def withdraw(self) -> None:
        """This ends the call at its next read, or in the one that it waits for; on the event loop."""
        self.withdrawn = True
        if self._asking is not None:
            self._asking.cancel()

    def checkpoint(self) -> None:
        """This raises QueryEnded once nobody wants the result any more."""
        if self.withdrawn:
            raise QueryEnded

    def asks(self, asking: "asyncio.Task[bytes]") -> None:
        """This notes what the call waits for; on the event loop."""
        self._asking = asking


_CURRENT: Final[ContextVar[_Worker | None]] = ContextVar("qvmi worker", default=None)
"""The call that this thread makes for somebody, if any."""


def checkpoint() -> None:
    """This ends the call that this thread makes, if nobody wants its result any more."""
    worker = _CURRENT.get()
    if worker is not None:
        worker.checkpoint()


def ask(
    fetch: Callable[[], Coroutine[Any, Any, bytes]], loop: asyncio.AbstractEventLoop, *, doing: str
) -> bytes:
    """This has an event loop fetch something for the thread that calls this, and waits for it.

    Where the call ends meanwhile, so does what was begun for it: to its end, such as the one of a pause.

    Raises:
        RuntimeError: the event loop was closed.
        MachineGone: there will be no answer.
        QvmiError: whatever fetching raises.
    """
    worker = _CURRENT.get()
    answer: Future[bytes] = Future()

    def begin() -> None:
        if worker is not None and worker.withdrawn:
            answer.cancel()
            return
        asking = loop.create_task(fetch())
        asking.add_done_callback(partial(_tell, answer))
        if worker is not None:
            worker.asks(asking)

    loop.call_soon_threadsafe(begin)
    try:
        return answer.result(_ANSWERS_S)
    except (AnswerCancelled, NoAnswer) as error:
        checkpoint()
        raise MachineGone(doing) from error  # the event loop ends, and the session with it


def _tell(answer: "Future[bytes]", asking: "asyncio.Task[bytes]") -> None:
    """This hands on what has come of it."""
    if asking.cancelled():
        answer.cancel()
    elif (error := asking.exception()) is not None:
        answer.set_exception(error)
    else:
        answer.set_result(asking.result())


async def in_worker(call: Callable[[], Result], *, timeout_s: float | None = None) -> Result:
    """This makes a call in a thread; when this returns or raises, the thread has ended.

    Args:
        call: reads guest memory that has a :func:`checkpoint` in each read.
        timeout_s: how long it may take; None for as long as it does.

    Raises:
        QueryTimeout: it took longer.
        BaseException: whatever the call raises.
    """
    worker = _Worker()
    done, thread = _started(worker, call)
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.wait([done])
    except TimeoutError as error:
        raise QueryTimeout(timeout_s or 0.0) from error
    finally:
        cancelled = None
        if not done.done():
            worker.withdraw()
            cancelled = await _end_of(done)
        if done.done():
            thread.join()  # it has nothing left to do
        if cancelled is not None:
            raise cancelled
    return done.result()()


def _started(
    worker: _Worker, call: Callable[[], Result]
) -> "tuple[asyncio.Future[Callable[[], Result]], threading.Thread]":
    """This starts a call in a thread, and gives what will tell of its outcome."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Callable[[], Result]] = loop.create_future()

    def deliver(outcome: Callable[[], Result]) -> None:
        if not done.done():
            done.set_result(outcome)

    def work() -> None:
        _CURRENT.set(worker)
        outcome = _outcome(call)
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(deliver, outcome)

    # What is marked for this task is marked there too.
    thread = threading.Thread(
        target=copy_context().run, args=(work,), name="qvmi query", daemon=True
    )
    thread.start()
    return done, thread


async def _end_of(
    done: "asyncio.Future[Callable[[], Result]]",
) -> asyncio.CancelledError | None:
    """This waits until a call has ended that was told to; a cancel meanwhile is told, not raised."""
    loop = asyncio.get_running_loop()
    deadline, cancelled = loop.time() + _ENDS_S, None
    while not done.done() and (left := deadline - loop.time()) > 0:
        try:
            await asyncio.wait([done], timeout=left)
        except asyncio.CancelledError as error:
            cancelled = error
    if not done.done():
        _logger.warning("a query neither reads nor ends: its thread is left to itself")
    return cancelled


def _outcome(call: Callable[[], Result]) -> Callable[[], Result]:
    """This makes a call, and keeps for another thread what comes of it."""
    try:
        result = call()
    except BaseException as error:  # noqa: BLE001 - it is raised where the call was wanted
        return partial(_raise, error)
    return lambda: result


def _raise(error: BaseException) -> Never:
    raise error


class WatchedMemory:
    """This is a direct memory whose reads end with the call that they are made for.

    It has no windows: what is read in place cannot be ended.

    Args:
        memory: what is read.
    """

    def __init__(self, memory: PhysicalMemory) -> None:
        self._memory = memory
        self.description = memory.description
        self.ranges: Sequence[PaRange] = memory.ranges
        self.windows: Sequence[Window] = ()

    def read(self, pa: Pa, size: int) -> bytes:
        """This reads exactly ``size`` bytes.

        Raises:
            MemoryFault: as the memory behind it.
        """
        checkpoint()
        return self._memory.read(pa, size)

    def data_ranges(self) -> Iterator[PaRange]:
        """This iterates what may hold other bytes than zero."""
        return self._memory.data_ranges()

    def close(self) -> None:
        """This leaves the memory to its owner."""
