"""What happens is printed as it happens, harmless, and the exit code tells whether all of it was seen."""

import json
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import pytest

from qvmi.addr import Va
from qvmi.cli.exit_code import ExitCode
from qvmi.cli.handlers.events import events
from qvmi.errors import MachineGone, QvmiError
from qvmi.machine.events.event_stream import EventAccount, EventStream
from qvmi.semantics.rows.events import (
    GuestChanged,
    GuestEvent,
    Missed,
    ModuleLoaded,
    ModuleUnloaded,
    Mounted,
    NotSeen,
    ProcessExeced,
    ProcessExited,
    ProcessStarted,
    SocketListening,
    Unmounted,
    What,
)
from qvmi.semantics.rows.files import Mount
from qvmi.semantics.rows.modules import Module
from qvmi.semantics.rows.processes import Process
from qvmi.semantics.rows.sockets import Socket
from qvmi.view import Provenance, Taken
from tests.asynchronous import asynchronous
from tests.unit.cli.streams import Captured

LABEL = Provenance(Taken.LIVE, 86400.25)
SHORT_S = 0.05
PROCESS = Process(
    7, 7, 1, 1000, 100, "R", "\x1b[31msh", Va(0x10), kernel_thread=False, start_time_s=1.0
)
MODULE = Module("dm_crypt", Va(0xC000), 4096, "live", Va(0xD000))
MOUNT = Mount(
    *(9, 1, 4026531841, "0:37", "/", "/mnt", "rw", "", "tmpfs", "[red]", "rw", Va(0x20)),
)
SOCKET = Socket(None, None, "tcp", "0.0.0.0:22", "0.0.0.0:0", "LISTEN", 4026531840, 5, Va(0x30))
EACH: list[tuple[GuestEvent, str]] = [
    (ProcessStarted(1.0, LABEL, PROCESS), "started   pid 7 ppid 1 uid 1000 \\x1b[31msh"),
    (
        ProcessExeced(1.0, LABEL, PROCESS, "old", 3),
        "execed    pid 7 ppid 1 uid 1000 \\x1b[31msh, was old, the last of 3",
    ),
    (
        ProcessExeced(1.0, LABEL, PROCESS, None, 1),
        "execed    pid 7 ppid 1 uid 1000 \\x1b[31msh",
    ),
    (ProcessExited(1.0, LABEL, PROCESS, 0x300), "exited    pid 7 status 0x300 \\x1b[31msh"),
    (ProcessExited(1.0, LABEL, PROCESS, None), "exited    pid 7 status unknown \\x1b[31msh"),
    (ModuleLoaded(1.0, LABEL, MODULE), "loaded    dm_crypt at 0xc000"),
    (ModuleUnloaded(1.0, LABEL, MODULE), "unloaded  dm_crypt"),
    (SocketListening(1.0, LABEL, SOCKET), "listening tcp 0.0.0.0:22"),
    (Mounted(1.0, LABEL, MOUNT), "mounted   tmpfs [red] on /mnt"),
    (Unmounted(1.0, LABEL, MOUNT), "unmounted tmpfs [red] from /mnt"),
    (Missed(1.0, LABEL, What.FORKS, 12), "missed    12 of forks"),
    (Missed(1.0, LABEL, What.EXECS, None), "missed    an unknown number of execs"),
    (NotSeen(1.0, LABEL, "net.list", Va(0x40), "why"), "gap       net.list at 0x40: why"),
    (GuestChanged(1.0, LABEL, ""), "changed   another guest runs, which is not recognised yet"),
    (GuestChanged(1.0, LABEL, "6.1"), "changed   Linux 6.1 is watched from now on"),
]
UNSEEN = (Missed, NotSeen, GuestChanged)


class Told:
    """This is a machine in which these events happen.

    Args:
        happening: what happens.
        account: how well it is watched.
        error: what ends the watching; None for the end of the block.
    """

    address = "a.sock"

    def __init__(
        self,
        *happening: GuestEvent,
        account: EventAccount | None = None,
        error: QvmiError | None = None,
    ) -> None:
        self.happening = happening
        self.account = account or EventAccount(looks=10, watched_s=2.0, cpu_s=0.1, forks=3)
        self.error = error
        self.asked: list[tuple[str, Collection[str] | None]] = []

    @asynccontextmanager
    async def _watched(self) -> AsyncIterator[EventStream]:
        stream = EventStream()
        stream.put(self.happening, self.account)
        if self.error is not None:
            stream.end(self.error)
        yield stream
        stream.end(None)

    @asynccontextmanager
    async def events(self, kinds: Collection[str] | None = None) -> AsyncIterator[EventStream]:
        self.asked.append(("looks", kinds))
        async with self._watched() as stream:
            yield stream

    @asynccontextmanager
    async def exact_events(
        self, kinds: Collection[str] | None = None
    ) -> AsyncIterator[EventStream]:
        self.asked.append(("breakpoints", kinds))
        async with self._watched() as stream:
            yield stream


async def printed(
    machine: Told,
    output: Captured,
    kinds: Collection[str] | None = None,
    *,
    exact: bool = False,
) -> ExitCode:
    named = None if kinds is None else tuple(kinds)
    return await events(machine, output, kinds=named, duration_s=SHORT_S, exact=exact)


@pytest.mark.parametrize(("event", "line"), EACH)
@asynchronous
async def test_an_event_is_a_line_and_what_was_not_seen_ends_with_4(
    event: GuestEvent, line: str
) -> None:
    output = Captured()
    code = await printed(Told(event), output)
    moment, _, words = output.result.partition(" ")
    assert moment.endswith(":00.250")
    assert words == f"{line}\n"
    assert code is (ExitCode.NOT_SEEN if isinstance(event, UNSEEN) else ExitCode.FINE)


@asynchronous
async def test_as_json_each_event_is_a_document_and_the_account_is_the_last_one() -> None:
    output = Captured(json=True)
    await printed(Told(*(event for event, _ in EACH)), output)
    *documents, last = map(json.loads, output.result.splitlines())
    assert [one["kind"] for one in documents] == [line.split()[0] for _, line in EACH]
    assert all(one["provenance"]["at"] == 86400.25 for one in documents)
    assert (last["kind"], last["looks"], last["forks"]) == ("account", 10, 3)


@asynchronous
async def test_forks_that_were_missed_end_with_4_though_no_event_says_so_any_more() -> None:
    output = Captured()
    account = EventAccount(looks=10, watched_s=2.0, cpu_s=0.1, forks=5, found=3, missed=2)
    assert await printed(Told(account=account), output) is ExitCode.NOT_SEEN
    assert "5 forks, 2 missed; 10 looks in 2.0 s, by 5.0% of a core" in output.messages


@asynchronous
async def test_what_breakpoints_cost_is_said() -> None:
    output = Captured()
    machine = Told(account=EventAccount(watched_s=2.0, stops=11, stood_still_s=0.0218))
    assert await printed(machine, output, ("started",), exact=True) is ExitCode.FINE
    assert machine.asked == [("breakpoints", ("started",))]
    assert "the guest was stopped 11 times, for 21.8 ms in all" in output.messages


@asynchronous
async def test_a_machine_that_ends_is_an_error_behind_what_was_seen() -> None:
    output = Captured()
    event, line = EACH[0]
    with pytest.raises(MachineGone):
        await printed(Told(event, error=MachineGone("a test")), output)
    assert line in output.result
    assert "10 looks" in output.messages
