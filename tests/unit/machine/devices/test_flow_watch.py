"""Watchings of flows: how long they go on, that they take turns, and that names outlive them."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import msgspec

from qvmi.machine.devices.flow_owners import LEAST_LOOKS
from qvmi.machine.devices.flow_watch import FlowWatch, Look
from qvmi.machine.devices.network_capture import NetworkCapture
from qvmi.semantics.guest_os import Gap, Socket
from qvmi.view import Provenance, Taken
from tests.asynchronous import asynchronous
from tests.unit.network.frames import capture, dns_answer, frame

DEADLINE_S = 30.0
OWN, FAR = ("10.0.2.15", 40000), ("192.0.2.7", 443)
ANSWER = frame(
    ("10.0.2.3", 53),
    ("10.0.2.15", 41000),
    protocol="udp",
    payload=dns_answer("www.example.org", (1, ip_address(FAR[0]).packed)),
)


class Wire:
    """What passes a card: files as QEMU writes them, one more frame of a lasting flow for each look."""

    def __init__(self, folder: Path, *, gaps: Sequence[Gap] = ()) -> None:
        self.folder = folder
        self.looks = self.open = self.most_open = self.captures = 0
        self.first: list[bytes] = []
        self.gaps = gaps
        self._path = folder / "none"

    @asynccontextmanager
    async def capture(self, _: str | None) -> AsyncIterator[NetworkCapture]:
        self.captures += 1
        self.open += 1
        self.most_open = max(self.open, self.most_open)
        files: dict[str, int] = {}
        for queue, frames in (("rx", []), ("tx", self.first)):
            path = self.folder / f"{queue}{self.captures}"
            path.write_bytes(capture(frames))
            files[queue] = os.open(path, os.O_RDONLY)
        self._path = self.folder / f"rx{self.captures}"
        try:
            yield NetworkCapture(files)
        finally:
            self.open -= 1
            for descriptor in files.values():
                os.close(descriptor)

    async def look(self) -> Look:
        self.looks += 1
        with self._path.open("ab") as file:
            file.write(capture([frame(OWN, FAR, payload=b"x")])[24:])
        return Look((), (), tuple(self.gaps), Provenance(Taken.LIVE, 0.0))


@asynchronous
async def test_it_goes_on_until_the_sockets_were_looked_at_often_enough(tmp_path: Path) -> None:
    wire = Wire(tmp_path)
    watch = FlowWatch(wire.capture, wire.look)
    (short,) = await watch.watch(0.0, round_s=0.001)
    assert (wire.looks, short.unowned) == (1, False)
    (flow,) = await watch.watch(0.0, round_s=0.001, least_looks=LEAST_LOOKS)
    assert (wire.looks, flow.unowned) == (1 + LEAST_LOOKS, True)
    assert flow.packets_out == LEAST_LOOKS


@asynchronous
async def test_looks_with_gaps_say_of_no_flow_that_it_is_nobodys(tmp_path: Path) -> None:
    gap = Gap("fdtable", None, "cannot be read")
    wire = Wire(tmp_path, gaps=[gap])
    listing = await FlowWatch(wire.capture, wire.look).watch(0.0, round_s=0.001, least_looks=9)
    assert [flow.unowned for flow in listing] == [False]
    assert listing.gaps == (gap,)


@asynchronous
async def test_a_name_that_was_told_in_one_watching_is_known_in_the_next(tmp_path: Path) -> None:
    wire = Wire(tmp_path)
    watch = FlowWatch(wire.capture, wire.look)
    assert [flow.name for flow in await watch.watch(0.0, round_s=0.001)] == [""]
    wire.first = [ANSWER]
    names = {flow.remote: flow.name for flow in await watch.watch(0.0, round_s=0.001)}
    assert names["192.0.2.7:443"] == "www.example.org"
    wire.first = []
    (later,) = await watch.watch(0.0, round_s=0.001)
    assert later.name == "www.example.org"


@asynchronous
async def test_two_watchings_of_one_machine_take_turns(tmp_path: Path) -> None:
    wire = Wire(tmp_path)
    watch = FlowWatch(wire.capture, wire.look)
    await asyncio.gather(*(watch.watch(0.0, round_s=0.001, least_looks=3) for _ in range(4)))
    assert (wire.captures, wire.most_open, wire.open) == (4, 1, 0)


@asynchronous
async def test_others_have_their_turns_while_much_is_read(tmp_path: Path) -> None:
    wire, turns = Wire(tmp_path), 0
    wire.first = [frame(FAR, OWN, payload=b"x")] * 5000

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(others())
    (flow,) = await FlowWatch(wire.capture, wire.look).watch(0.0, round_s=0.001)
    beside.cancel()
    assert flow.packets_in + flow.packets_out == 5001
    assert turns > 10


class SlowSockets(tuple[Socket, ...]):
    """Sockets that are looked through only once somebody else had a turn."""

    __slots__ = ()
    turn = threading.Event()

    def __iter__(self) -> Iterator[Socket]:
        assert self.turn.wait(DEADLINE_S)
        return super().__iter__()


@asynchronous
async def test_others_have_their_turns_while_owners_are_looked_up(tmp_path: Path) -> None:
    wire, sockets = Wire(tmp_path), SlowSockets()
    sockets.turn.clear()

    async def look() -> Look:
        asyncio.get_running_loop().call_soon(sockets.turn.set)
        return msgspec.structs.replace(await wire.look(), sockets=sockets)

    (flow,) = await FlowWatch(wire.capture, look).watch(0.0, round_s=0.001)
    assert flow.pid is None
