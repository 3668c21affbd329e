"""Batched reads through the gdbstub against a bare synchronous socket loop of 32 packets at a time.

``python benchmarks/gdbstub.py [--quick]``. Both sides read the same physical ranges of one stopped
machine. The loop has its packets ready made, checks no checksum and decodes nothing; it is what QEMU and
the kernel need, and a little less than anybody can use.
"""

import asyncio
import socket
import time
from collections.abc import Sequence
from typing import Self

from race import Disagreement, Side, Size, in_turns, run, tell_ratio

from qvmi.gdbstub.client import GdbClient
from qvmi.gdbstub.memory import MemoryRead
from tests.guests.bare_qemu import bare_qemu

LEAST_RATIO = 0.9
AT_ONCE = 32
FROM = 0x100000
RANGES = 500
PACKETS = ("-m", "64", "-S")


def main(size: Size) -> None:
    """This races on one machine, with small reads and with the largest that a packet holds."""
    with bare_qemu(*PACKETS) as machine:
        path = str(machine.folder / "gdb.sock")
        machine.monitor.human(f"gdbserver unix:{path},server=on,wait=off")
        race_of(path, 8, size.of(full=32_000, quick=320), size.of(full=9, quick=1))
        race_of(path, 2048, size.of(full=8_000, quick=320), size.of(full=9, quick=1))


def race_of(path: str, width: int, count: int, rounds: int) -> None:
    """This races reads of one width."""
    reads = [MemoryRead(FROM + number % RANGES * width, width) for number in range(count)]
    compare(path, reads[: AT_ONCE * 10])
    ours, theirs = in_turns(rounds, by_client(path, reads), by_loop(path, reads))
    ratio = theirs.median / ours.median
    tell_ratio(
        f"physical reads of {width} B through the gdbstub",
        f"{count / ours.median:,.0f}/s, {count * width / ours.median / 1e6:.1f} MB/s",
        ratio,
        beside=f"bare loop {count / theirs.median:,.0f}/s",
        target=f"at least {LEAST_RATIO:g}",
        reached=ratio >= LEAST_RATIO,
    )


def compare(path: str, reads: Sequence[MemoryRead]) -> None:
    """This checks that both sides read the same bytes.

    Raises:
        Disagreement: they do not.
    """
    found: list[object] = []

    async def once() -> None:
        async with await GdbClient.connect(path, was_running=False) as client:
            found.extend(await client.read_many_physical(reads))

    asyncio.run(once())
    with Loop(path) as loop:
        raw = [bytes.fromhex(body.decode()) for body in loop.ask(packets_of(reads))]
    if found != raw:
        raise Disagreement(f"{len(reads)} reads: the bytes differ")
    print(f"{reads[0].size} B: both sides gave the same answer, {len(reads)} of them", flush=True)


def by_client(path: str, reads: Sequence[MemoryRead]) -> Side:
    """This reads through qvmi."""

    async def timed() -> float:
        async with await GdbClient.connect(path, was_running=False) as client:
            began = time.perf_counter()
            await client.read_many_physical(reads)
            return time.perf_counter() - began

    return lambda: asyncio.run(timed())


def by_loop(path: str, reads: Sequence[MemoryRead]) -> Side:
    """This reads through the bare loop."""
    packets = packets_of(reads)

    def timed() -> float:
        with Loop(path) as loop:
            began = time.perf_counter()
            loop.ask(packets)
            return time.perf_counter() - began

    return timed


def packets_of(reads: Sequence[MemoryRead]) -> list[bytes]:
    """These are the packets that the loop sends."""
    return [packet(b"m%x,%x" % (read.address, read.size)) for read in reads]


def packet(body: bytes) -> bytes:
    """This is a packet as it is sent."""
    return b"$%b#%02x" % (body, sum(body) & 255)


class Loop:
    """This is the bare loop: send so many packets, cut as many replies out of what comes."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._heard = b""

    def __enter__(self) -> Self:
        self.ask([packet(b"qSupported:multiprocess+"), packet(b"Qqemu.PhyMemMode:1")])
        return self

    def __exit__(self, *_: object) -> None:
        self.ask([packet(b"Qqemu.PhyMemMode:0"), packet(b"?")])
        self._socket.close()

    def ask(self, packets: Sequence[bytes]) -> list[bytes]:
        """This sends and receives, 32 packets at a time."""
        found: list[bytes] = []
        for at in range(0, len(packets), AT_ONCE):
            part = packets[at : at + AT_ONCE]
            self._socket.sendall(b"".join(part))
            found += [self._receive() for _ in part]
        return found

    def _receive(self) -> bytes:
        while True:
            begin = self._heard.find(b"$")
            end = self._heard.find(b"#", begin)
            if 0 <= begin < end and len(self._heard) > end + 2:
                body = self._heard[begin + 1 : end]
                self._heard = self._heard[end + 3 :]
                return body
            more = self._socket.recv(1 << 20)
            if not more:
                raise Disagreement("the stub closed the connection")
            self._heard += more


if __name__ == "__main__":
    run(main)
