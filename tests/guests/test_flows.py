"""What passes a running guest's network card is told as QEMU captures it, with the processes it is of."""

import asyncio
import json
import os
import re
import signal
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest

import qvmi
from qvmi.addr import Va
from qvmi.errors import PolicyDenied, UsageError
from qvmi.machine.devices.flow_watch import Flow
from qvmi.machine.ways.monitor_memory import SavedMemory
from qvmi.policy import OBSERVE, Grant
from qvmi.semantics.guest_os import Listing
from qvmi.symbols.layout import field_offset
from tests.asynchronous import asynchronous, until
from tests.command_line import DEADLINE_S, QVMI, environment, qvmi_document
from tests.guests.bare_qemu import bare_qemu
from tests.guests.lab import Guest, Lab
from tests.guests.network_card import CARD
from tests.guests.pool import GuestPool
from tests.guests.test_documented_fields import check
from tests.guests.waiting import wait_for
from tests.isolation.user_vm import OWN_MAC, network_guest
from tests.unit.network.frames import frame

OWN: Final = "10.0.2.15"
HOST: Final = "10.0.2.2"
LINKS: Final = struct.Struct("<QQ")

Result = TypeVar("Result")

INTERVALS_S: Final = ("1", "8", "20")
"""Of the codepack, which watches for at least six looks; the later ones as below."""
LOOKING_S: Final = 200.0
"""Longest run of a codepack: what it finds is followed for a minute, beside a look and an attach."""
WATCHED_S: Final = (5.0, 60.0)
"""How long is watched; the second time only where the first was not enough, as the host is busy."""
FORGED: Final = (7777, 9999)
"""Ports of datagrams that no socket of UDP has sent."""
LASTING: Final = (
    "mkfifo /run/pipe; (while [ -e /run/go ]; do echo x; usleep 100000; done)"
    " > /run/pipe 2> /dev/null & nc {host} {port} < /run/pipe > /dev/null 2>&1 & echo $!"
)
PASSING: Final = (
    "(while [ -e /run/go ]; do echo x | nc -w 1 {host} {port}; done) > /dev/null 2>&1 &"
)
MAY: Final = OBSERVE.plus(Grant.NETWORK_CAPTURE)
pytestmark = pytest.mark.timeout(900)  # a fixture of several watchings counts for the first test


@dataclass(frozen=True, slots=True)
class Watched:
    """This is what a watch has found, and what is known apart from it.

    Args:
        guest: that was watched.
        listing: of its flows.
        pid: of the process with the lasting connection.
        lasting: the host's port of that.
        passing: the host's port of the short ones.
        capture: a file that the lab had QEMU write meanwhile.
        found: what the codepack has found, by the far end of the flow.
        hiding: the same while the process with the lasting connection was hidden.
    """

    guest: Guest
    listing: Listing[Flow]
    pid: int
    lasting: int
    passing: int
    capture: Path
    found: dict[str, Any]
    hiding: dict[str, Any]

    def to(self, port: int) -> list[Flow]:
        return [flow for flow in self.listing if flow.remote == f"{HOST}:{port}"]


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Iterator[Guest]:
    with ExitStack() as stack:
        vm = network_guest(GuestPool(lab, stack))
        card = f"virtio-net-pci,netdev=bus,id=card,mac={OWN_MAC}"
        for command in ('netdev_add "user,id=bus"', f"device_add {card}"):
            assert vm.guest.monitor.human(command) == ""
        wait_for(vm.guest, CARD)
        vm.configure(f"{OWN}/24", HOST)
        yield vm.guest


@asynccontextmanager
async def listening() -> AsyncIterator[int]:
    """This reads what comes to a port of this host's loopback interface, and answers it."""
    connections: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(writer)
        try:
            while data := await reader.read(1000):
                writer.write(data)
        except OSError:
            pass  # it was reset
        finally:
            writer.close()
            connections.discard(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        for writer in set(connections):
            writer.transport.abort()
        await until(lambda: not connections)


async def watch(guest: Guest, folder: Path) -> Watched:
    capture = folder / "lab.pcap"
    guest.run("touch /run/go")
    dump = {"qom-type": "filter-dump", "id": "lab", "netdev": "bus", "file": str(capture)}
    guest.monitor.execute("object-add", **dump)
    forged = frame((OWN, FORGED[0]), (HOST, FORGED[1]), protocol="udp", payload=b"nobody's")
    async with listening() as lasting, listening() as passing:
        try:
            asked = LASTING.format(host=HOST, port=lasting)
            said = await asyncio.to_thread(guest.run, asked)
            await asyncio.to_thread(guest.run, PASSING.format(host=HOST, port=passing))
            async with qvmi.attach(guest.qmp, policy=MAY) as machine:
                for seconds in WATCHED_S:
                    listing = await forging(guest, forged, machine.flows(seconds))
                    if any(flow.unowned for flow in listing):
                        break
            found = await found_by_codepack(guest, forged, folder, {f"{HOST}:{FORGED[1]}"})
            await hide(guest, int(said))
            hiding = await found_by_codepack(guest, forged, folder, {f"{HOST}:{lasting}"})
        finally:
            guest.run("rm /run/go; rm -f /run/pipe")
            guest.monitor.execute("object-del", id="lab")
    return Watched(guest, listing, int(said), lasting, passing, capture, found, hiding)


async def hide(guest: Guest, pid: int) -> None:
    """This takes a process off the list of tasks, as ``list_del_init`` does; it runs on, and may end."""
    may = MAY.plus(Grant.WRITE)
    async with qvmi.attach(guest.qmp, policy=may) as machine, machine.paused():
        linux = machine.guest
        (process,) = (row for row in linux.processes() if row.pid == pid)
        entry = process.address + field_offset(linux.kernel.symbols, "task_struct", "tasks")
        following, before = LINKS.unpack(linux.kernel.space.read(Va(entry), LINKS.size))
        for va, links in (
            (before, struct.pack("<Q", following)),
            (following + 8, struct.pack("<Q", before)),
            (entry, LINKS.pack(entry, entry)),
        ):
            await machine.write_virtual(Va(va), links)


async def forging(guest: Guest, forged: bytes, work: Coroutine[Any, Any, Result]) -> Result:
    """This has the guest send a forged frame again and again while something is done."""
    working = asyncio.create_task(work)
    while not working.done():
        await asyncio.to_thread(guest.ask, f"probe frames eth0 {forged.hex()}")
        await asyncio.sleep(0.05)
    return await working


def output(*arguments: str) -> bytes:
    """This is what the command prints, however it ends."""
    command = (*QVMI, *arguments)
    return subprocess.run(
        command, env=environment(), stdout=subprocess.PIPE, timeout=LOOKING_S, check=False
    ).stdout


async def found_by_codepack(
    guest: Guest, forged: bytes, folder: Path, wanted: set[str]
) -> dict[str, Any]:
    """This is what ``pack run`` finds, by the far ends; it watches longer where that is not all there is."""
    policy = folder / "policy.toml"
    grants = "read-memory = true\nnetwork-capture = true\n"
    policy.write_text(f"version = 1\n[codepacks.flows-without-owner]\n{grants}")
    found: dict[str, Any] = {}
    for seconds in INTERVALS_S:
        words = ("pack", "run", "flows-without-owner", "--policy", str(policy), "--json")
        running = asyncio.to_thread(output, "--qmp", guest.qmp, *words, "--interval", seconds)
        items = json.loads(await forging(guest, forged, running))["items"]
        found = {one["finding"]["evidence"][0]["facts"]["remote"]: one for one in items}
        if wanted <= {remote for remote, one in found.items() if one["confirmed"]}:
            break
    return found


@pytest.fixture(scope="module")
def watched(guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    return asyncio.run(watch(guest, tmp_path_factory.mktemp("flows")))


def test_a_flow_has_its_process(watched: Watched) -> None:
    (flow,) = watched.to(watched.lasting)
    assert (flow.protocol, flow.pid, flow.process) == ("tcp", watched.pid, "nc")
    assert flow.local.startswith(f"{OWN}:")
    assert not flow.unowned


def test_short_connections_are_no_findings(watched: Watched) -> None:
    found = watched.to(watched.passing)
    assert found
    assert not [flow for flow in found if flow.unowned]


def test_what_no_socket_has_sent_is_a_finding(watched: Watched) -> None:
    (flow,) = (flow for flow in watched.listing if flow.unowned)
    assert (flow.protocol, flow.local, flow.remote) == (
        "udp",
        f"{OWN}:{FORGED[0]}",
        f"{HOST}:{FORGED[1]}",
    )
    assert flow.pid is None


def test_the_codepack_finds_what_no_socket_has_sent_and_nothing_else(watched: Watched) -> None:
    (item,) = watched.found.values()
    wire, guest = item["finding"]["evidence"]
    assert item["confirmed"]
    assert (wire["facts"]["local"], wire["facts"]["remote"]) == (
        f"{OWN}:{FORGED[0]}",
        f"{HOST}:{FORGED[1]}",
    )
    assert (wire["present"], guest["present"], guest["view"]) == (
        True,
        False,
        "sockets of the guest",
    )


def test_the_codepack_finds_the_flow_of_a_process_that_is_hidden(watched: Watched) -> None:
    item = watched.hiding[f"{HOST}:{watched.lasting}"]
    _, table, descriptors = item["finding"]["evidence"]
    (flow,) = watched.to(watched.lasting)
    assert (item["confirmed"], table["address"]) == (True, flow.socket)
    assert (table["present"], descriptors["present"]) == (True, False)
    assert f"{HOST}:{watched.passing}" not in watched.hiding


def test_counts_are_within_those_of_a_capture_around_it(watched: Watched) -> None:
    """The lab's own capture began before the watch and ended after it, and tcpdump counts it."""
    (flow,) = watched.to(watched.lasting)
    for way, packets, size in (
        ("dst", flow.packets_out, flow.bytes_out),
        ("src", flow.packets_in, flow.bytes_in),
    ):
        rule = f"tcp and {way} port {watched.lasting}"
        lines = subprocess.run(
            ["tcpdump", "-nn", "-e", "-r", watched.capture, rule],
            capture_output=True,
            text=True,
            check=True,
            timeout=DEADLINE_S,
        ).stdout.splitlines()
        sizes = [int(match[1]) for line in lines if (match := re.search(r"length (\d+): ", line))]
        assert 0 < packets <= len(lines)
        assert sum(sorted(sizes)[:packets]) <= size <= sum(sorted(sizes)[-packets:])


def left_in_qemu(guest: Guest) -> list[str]:
    objects = guest.monitor.execute("qom-list", path="/objects")
    return [one["name"] for one in objects if one["name"].startswith("qvmi-dump")]


def folders() -> set[Path]:
    return set(Path("/dev/shm").glob("qvmi-flows-*"))  # noqa: S108 - where the command makes them


def wait_until_capturing(guest: Guest, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + DEADLINE_S
    while len(left_in_qemu(guest)) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def start(guest: Guest) -> "subprocess.Popen[bytes]":
    # Whoever runs the tests in the background of a script has Ctrl-C ignored, which children inherit.
    heeding = ("env", "--default-signal=INT")
    command = (*heeding, *QVMI, "--qmp", guest.qmp, "flows", "--for", "600")
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
    wait_until_capturing(guest, process)
    return process


def test_nothing_is_left_of_a_watch(watched: Watched) -> None:
    assert left_in_qemu(watched.guest) == []


def test_ctrl_c_leaves_nothing(guest: Guest) -> None:
    before = folders()
    process = start(guest)
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE_S) == 130
    assert left_in_qemu(guest) == []
    assert folders() <= before


def test_the_guardian_removes_what_a_killed_watch_has_left(guest: Guest) -> None:
    before = folders()
    process = start(guest)
    process.kill()
    process.wait(DEADLINE_S)
    deadline = time.monotonic() + DEADLINE_S
    while left_in_qemu(guest) or not folders() <= before:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_next_watch_removes_what_a_killed_one_and_its_guardian_have_left(guest: Guest) -> None:
    before = folders()
    process = start(guest)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    guardians = [
        int(child)
        for child in children
        if b"guardian" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    assert guardians
    for pid in guardians:
        os.kill(pid, signal.SIGKILL)
    process.kill()
    process.wait(DEADLINE_S)
    assert len(left_in_qemu(guest)) == 2
    document = qvmi_document("--qmp", guest.qmp, "flows", "--for", "0.1")
    assert set(document) == {"items", "gaps", "provenance"}
    assert left_in_qemu(guest) == []
    assert folders() <= before


@asynchronous
async def test_a_session_without_the_grant_captures_nothing(guest: Guest) -> None:
    async with qvmi.attach(guest.qmp) as machine:
        with pytest.raises(PolicyDenied, match="network-capture"):
            await machine.flows(0.1)


@asynchronous
async def test_a_netdev_and_a_folder_that_are_not_there_are_named(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with qvmi.attach(guest.qmp, policy=MAY) as machine:
        with pytest.raises(UsageError, match="no netdev 'other'; there are: bus"):
            await machine.flows(0.1, netdev="other")
        monkeypatch.setattr(SavedMemory, "bases", lambda: iter([Path("/nowhere")]))
        with pytest.raises(UsageError, match="no folder for a capture"):
            await machine.flows(0.1)


@asynchronous
async def test_a_machine_without_a_netdev_is_told_to_have_none() -> None:
    with bare_qemu() as bare:
        async with qvmi.attach(bare.qmp, policy=MAY) as machine:
            with pytest.raises(UsageError, match="no netdev that could be captured at"):
                await machine.flows(0.1)


def test_the_fields_are_those_documented(watched: Watched) -> None:
    names = set(Flow.__struct_fields__)
    check("flows", [dict.fromkeys(names)])
    assert {type(flow) for flow in watched.listing} == {Flow}
