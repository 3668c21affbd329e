"""Memory that has to be asked for is asked for anew, kept while it cannot change, and let go of in time."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from qvmi.addr import PAGE_SIZE, Pa, PaRange
from qvmi.errors import MachineGone, MemoryFault, NotDirect, QueryTimeout
from qvmi.machine.ways.remote_memory import RemoteMemory
from qvmi.machine.worker import in_worker
from tests.asynchronous import asynchronous, until

START = 0x10000
PAGES = 64
BLOCK = 4 * PAGE_SIZE


class Talk:
    """This is a conversation about bytes of its own, with a log of what was asked for.

    Attributes:
        asked: the first page, counted from the start of RAM, and the size of each fetch.
        data: what RAM holds.
        silent: whether no answer ever comes.
        short: bytes by which each answer is too short.
    """

    description = "talk of a test"
    stops_guest = False
    block = BLOCK

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.data = bytearray(b"".join(bytes([page]) * PAGE_SIZE for page in range(PAGES)))
        self.silent = False
        self.short = 0
        self.closed = False

    async def fetch(self, pa: Pa, size: int) -> bytes:
        self.asked.append(((pa - START) // PAGE_SIZE, size))
        if self.silent:
            await asyncio.Event().wait()
        at = pa - START
        return bytes(self.data[at : at + size - self.short])

    async def end_still(self) -> None:
        """This has nothing to end."""

    async def let_go(self) -> None:
        """This has nothing to end."""

    def close(self) -> None:
        self.closed = True


def memory_of(talk: Talk) -> RemoteMemory:
    return RemoteMemory([PaRange(Pa(START), Pa(START + PAGES * PAGE_SIZE))], talk)


def queries() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "qvmi query"]


def read(memory: RemoteMemory, page: int, size: int = 8) -> Callable[[], bytes]:
    return lambda: memory.read(Pa(START + page * PAGE_SIZE), size)


@asynchronous
async def test_a_guest_that_runs_is_asked_each_time() -> None:
    talk = Talk()
    memory = memory_of(talk)
    for value in (7, 8):
        talk.data[3 * PAGE_SIZE] = value
        assert (await in_worker(read(memory, 3)))[0] == value
    assert talk.asked == [(3, 8), (3, 8)]


@asynchronous
async def test_a_guest_that_stands_still_is_asked_once_for_a_block() -> None:
    talk = Talk()
    memory = memory_of(talk)
    memory.begin_still()
    for page in (5, 4, 7, 5):
        assert await in_worker(read(memory, page)) == bytes([page]) * 8
    assert await in_worker(read(memory, 6, 3 * PAGE_SIZE)) == b"".join(
        bytes([page]) * PAGE_SIZE for page in (6, 7, 8)
    )
    assert talk.asked == [(4, BLOCK), (8, BLOCK)]


@asynchronous
async def test_what_was_kept_goes_with_the_standstill() -> None:
    talk = Talk()
    memory = memory_of(talk)
    memory.begin_still()
    await in_worker(read(memory, 1))
    memory.end_still()
    talk.data[PAGE_SIZE : PAGE_SIZE + 8] = b"changed."
    assert await in_worker(read(memory, 1)) == b"changed."
    memory.begin_still()
    assert await in_worker(read(memory, 1)) == b"changed."


@asynchronous
async def test_the_event_loop_may_not_wait_for_itself() -> None:
    talk = Talk()
    memory = memory_of(talk)
    with pytest.raises(NotDirect, match="query"):
        read(memory, 0)()
    assert not talk.asked


@asynchronous
async def test_an_answer_that_is_too_short_faults_where_it_ends() -> None:
    talk = Talk()
    talk.short = 3
    with pytest.raises(MemoryFault, match="only 5 bytes came") as caught:
        await in_worker(read(memory_of(talk), 0))
    assert caught.value.address == START + 5


@pytest.mark.parametrize("timeout_s", [0.0, 0.01])
@asynchronous
async def test_a_deadline_ends_a_read_that_is_never_answered(timeout_s: float) -> None:
    talk = Talk()
    talk.silent = True
    memory = memory_of(talk)
    with pytest.raises(QueryTimeout):
        await in_worker(read(memory, 0), timeout_s=timeout_s)
    assert not queries()
    talk.silent = False
    assert await in_worker(read(memory, 0)) == bytes(8)


@asynchronous
async def test_a_cancel_ends_a_read_that_is_never_answered() -> None:
    talk = Talk()
    talk.silent = True
    reading = asyncio.ensure_future(in_worker(read(memory_of(talk), 0)))
    await until(lambda: bool(talk.asked))
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert not queries()


@asynchronous
async def test_no_error_of_the_guest_is_made_of_a_cancel() -> None:
    talk = Talk()
    memory = memory_of(talk)
    caught: list[Exception] = []

    def look() -> None:
        while True:
            try:
                read(memory, 0)()
            except Exception as error:  # noqa: BLE001 - as a walk that makes gaps of faults
                caught.append(error)

    looking = asyncio.ensure_future(in_worker(look))
    await until(lambda: len(talk.asked) > 3)
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking
    assert not caught
    assert not queries()


@asynchronous
async def test_closing_ends_the_conversation_and_reads_that_come_later() -> None:
    talk = Talk()
    memory = memory_of(talk)
    memory.close()
    assert talk.closed
    with pytest.raises(MemoryFault, match="closed"):
        await in_worker(read(memory, 0))


def test_a_thread_that_outlives_the_event_loop_is_told() -> None:
    talk = Talk()

    async def make() -> RemoteMemory:
        return memory_of(talk)

    memory = asyncio.run(make())
    errors: list[Exception] = []

    def look() -> None:
        try:
            read(memory, 0)()
        except (MemoryFault, MachineGone) as error:
            errors.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert len(errors) == 1
