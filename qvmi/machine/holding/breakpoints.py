"""Breakpoints as a stream of hits, for several consumers at once.

Each hit stops the whole guest for some milliseconds under TCG, whoever looks: QEMU translates its code
anew. Where losses can be borne, watching memory is a thousand times cheaper.

References: System V Application Binary Interface, AMD64 supplement, 3.2.3 (arguments); Linux
arch/x86/entry/entry_64.S (the fourth argument of a system call is in r10); AAPCS64, 6.8.2.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

from qvmi.addr import Va
from qvmi.arch import aarch64, x86_64
from qvmi.errors import QvmiError
from qvmi.machine.holding.debugger import Stop
from qvmi.semantics.guest_os import Thread

__all__ = ["MAX_WAITING_HITS", "Condition", "Hit", "HitStream", "arguments_of", "hit_of"]

MAX_WAITING_HITS: Final = 1024
"""Hits kept for a consumer that is slow; the oldest are dropped and counted."""


@dataclass(frozen=True, slots=True)
class Hit:
    """This is one time that a vCPU came to a place.

    Args:
        place: as it was asked for: a symbol, or an address in hexadecimal.
        address: of the instruction that is executed next.
        vcpu: which vCPU it is.
        registers: of that vCPU.
        arguments: the first six, if the place is the beginning of a function of the kernel.
        task: the thread that runs there; None in user mode's first instructions in the kernel, or
            where it cannot be read.
        at: seconds since the Unix epoch on the host's clock.
    """

    place: str
    address: Va
    vcpu: int
    registers: x86_64.Registers | aarch64.Registers
    arguments: tuple[int, ...]
    task: Thread | None
    at: float


Condition = Callable[[Hit], bool]
"""Tells whether a hit is wanted; asked while the guest stands still, so it must be quick."""


class HitStream:
    """This iterates hits as they come; it ends with the block that made it, or raises what ended it.

    Args:
        place: what is waited for, for people.
        address: the same as an address.
        condition: which hits are wanted.

    Attributes:
        hits: how many there were, wanted or not.
        dropped: how many wanted ones were dropped, because the consumer was too slow.
        refused: how many the condition could not decide on, since it raised.
    """

    def __init__(self, place: str, condition: Condition | None) -> None:
        self.place = place
        self.hits = 0
        self.dropped = 0
        self.refused = 0
        self._condition = condition
        self._waiting = deque[Hit](maxlen=MAX_WAITING_HITS)
        self._news = asyncio.Event()
        self._end: Exception | None = None

    @property
    def waiting(self) -> int:
        """This is how many hits wait for the consumer."""
        return len(self._waiting)

    def put(self, hit: Hit) -> None:
        """This takes a hit in; it never waits and never raises."""
        self.hits += 1
        if not self._is_wanted(hit):
            return
        self.dropped += len(self._waiting) == MAX_WAITING_HITS
        self._waiting.append(hit)
        self._news.set()

    def end(self, error: QvmiError | None) -> None:
        """This ends the stream behind what waits in it: by an error, or None for a plain end."""
        self._end = self._end or error or StopAsyncIteration()
        self._news.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Hit:
        while not self._waiting:
            if self._end is not None:
                raise self._end
            self._news.clear()
            await self._news.wait()
        return self._waiting.popleft()

    def _is_wanted(self, hit: Hit) -> bool:
        if self._condition is None:
            return True
        try:
            return self._condition(hit)
        except Exception:  # noqa: BLE001 - foreign code, which must not keep the guest stopped
            self.refused += 1
            return False


def hit_of(stream: HitStream, stop: Stop, task: Thread | None) -> Hit:
    """This is the hit for one consumer."""
    found = arguments_of(stop.registers)
    vcpu = stop.registers.index
    return Hit(stream.place, stop.pc, vcpu, stop.registers, found, task, time.time())


def arguments_of(registers: x86_64.Registers | aarch64.Registers) -> tuple[int, ...]:
    """These are the first six arguments of the function that is about to begin."""
    if isinstance(registers, aarch64.Registers):
        return tuple(registers.x[:6])
    found = (registers.rdi, registers.rsi, registers.rdx, registers.rcx, registers.r8, registers.r9)
    return tuple(value or 0 for value in found)
