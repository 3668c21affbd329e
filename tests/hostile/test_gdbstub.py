"""A gdbstub that says anything at all, to everything that is asked of it."""

import asyncio
import contextlib
import random

from qvmi.addr import Pa, Va
from qvmi.errors import QvmiError
from qvmi.gdbstub.client import Breakpoint, GdbClient
from qvmi.gdbstub.memory import MemoryRead
from qvmi.gdbstub.packets import ThreadId, monitor_request
from qvmi.gdbstub.rsp import frame
from tests.asynchronous import asynchronous
from tests.hostile.bounds import cpu_seconds, peak_mib
from tests.unit.gdbstub.scripted_stub import scripted
from tests.unit.qmp.scripted_server import served, watched_loop

ROUNDS = 150
ATTACHING = {
    b"qSupported:multiprocess+;swbreak+;hwbreak+;vContSupported+",
    b"Qqemu.PhyMemMode:0",
    b"?",
    monitor_request("info version"),
}
SAID = [
    *(b"", b"OK", b"E14", b"E22", b"T05thread:p01.01;", b"T02", b"S05", b"W00", b"X09", b"O41"),
    *(b"l", b"m", b"m1,2,3", b"PacketSize=1000", b"PacketSize=1", b"00" * 2048, b"ff00ebfc"),
    *(b"l<target/>", b"m<target>", b'l<target><xi:include href="target.xml"/></target>'),
    b'l<target><architecture>aarch64</architecture><reg name="x0" bitsize="64"/></target>',
]


def anything(rng: random.Random, request: bytes) -> bytes | None:
    """This is what the stub says to a request; in half of the cases what a real one said."""
    if request in ATTACHING or rng.random() < 0.5:
        return None
    kind = rng.random()
    if kind < 0.7:
        return b"+" + frame(rng.choice(SAID))
    if kind < 0.8:
        return b"+" + frame(rng.choice(SAID)) * rng.randrange(5)
    if kind < 0.9:
        return b"+" + frame(rng.randbytes(rng.randrange(40)).hex().encode())
    return rng.randbytes(rng.randrange(8)) if kind < 0.95 else b""


async def everything(client: GdbClient, rng: random.Random) -> None:
    """This asks for all there is, in any order; whatever it raises is an error of ours."""
    here = Breakpoint(Va(0x100025))
    ways = [
        lambda: client.read_physical(Pa(0x1000), 5000),
        lambda: client.read_virtual(Va(0x100025), 4),
        lambda: client.read_many_virtual([MemoryRead(n * 4096, 4096) for n in range(200)]),
        lambda: client.write_virtual(Va(0x1000), b"x" * 5000),
        client.registers.threads,
        client.registers.vcpus,
        lambda: client.registers.read_named(ThreadId(1, 1), ["rip", "cr3"]),
        lambda: client.insert(here),
        lambda: client.remove(here),
        lambda: client.step(ThreadId(1, 1), over=[here]),
        client.resume,
        client.interrupt,
        client.next_stop,
    ]
    for _ in range(12):
        with contextlib.suppress(QvmiError, TimeoutError):
            async with asyncio.timeout(0.03):
                await rng.choice(ways)()


@asynchronous
async def test_whatever_a_stub_says_only_errors_of_ours_come_out() -> None:
    with cpu_seconds(60):
        for seed in range(ROUNDS):
            rng = random.Random(seed)
            stub = scripted(lambda request, rng=rng: anything(rng, request))  # type: ignore[misc]
            async with watched_loop(), served(stub) as path:
                with contextlib.suppress(QvmiError, TimeoutError):
                    async with asyncio.timeout(1):
                        client = await GdbClient.connect(path)
                        await everything(client, rng)
                        await client.detach()


@asynchronous
async def test_a_stub_that_prints_for_ever_costs_little() -> None:
    printed = frame(b"O" + b"41" * 2000)

    def answer(request: bytes) -> bytes | None:
        return printed * 6000 if request[:1] == b"m" else None

    with cpu_seconds(20), peak_mib(80):
        async with watched_loop(), served(scripted(answer)) as path:
            with contextlib.suppress(QvmiError):
                async with await GdbClient.connect(path) as client:
                    await client.read_virtual(Va(0), 8)
