"""Guests that trace themselves, load modules and run eBPF programs give no alert, however often one looks."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

import pytest

import qvmi
from qvmi.codepacks.alert import Alert
from qvmi.codepacks.confirmation import Confirmation
from qvmi.codepacks.hidden_modules import HiddenModules
from qvmi.codepacks.interrupt_table import InterruptTable
from qvmi.codepacks.kernel_hooks import KernelHooks
from qvmi.codepacks.kernel_settings import KernelSettings
from qvmi.codepacks.kernel_text import KernelText
from qvmi.codepacks.observed_guest import ObservedGuest
from qvmi.codepacks.status import Sight, Status
from qvmi.codepacks.system_calls import SystemCalls
from qvmi.manager.watch import watch
from qvmi.semantics.linux.guest import LinuxGuest
from tests.asynchronous import asynchronous
from tests.guests.aarch64_guests import aarch64
from tests.guests.lab import Guest, GuestConfig, GuestRefused, Lab
from tests.guests.pool import GuestPool
from tests.proofs import proof_size

TRACING: Final = "cd /sys/kernel/tracing && "
MOUNT: Final = "mkdir -p /sys/kernel/tracing; mount -t tracefs t /sys/kernel/tracing"
PHASES: Final = (
    "echo p:begin do_nanosleep >> kprobe_events",
    "echo r:end vfs_open >> kprobe_events",
    "echo 1 > events/kprobes/enable",
    "echo function > current_tracer",
    "echo nop > current_tracer; echo 1 > events/sched/enable",
    "echo 0 > events/sched/enable; echo 0 > events/kprobes/enable; echo > kprobe_events",
)
LONGEST_S: Final = 900
"""A guest that traces all its functions is slow; each test takes 5 to 15 s on an idle machine."""
WAIT_S: Final = 120.0
"""Longest wait for a status or an alert; it takes two looks, each a second after the other."""
PACKS: Final = (
    *(SystemCalls, KernelText, HiddenModules),
    *(InterruptTable, KernelHooks, KernelSettings),
)


class Watched:
    """This is all of the codepacks over one guest that runs, each confirmed as the runner does.

    Attributes:
        alerts: what was raised.
        rounds: how often all of them looked.
    """

    def __init__(self, linux: LinuxGuest) -> None:
        self._linux = linux
        self._packs = [(make(), Confirmation()) for make in PACKS]
        self.alerts: list[str] = []
        self.rounds = 0

    def look(self, rounds: int) -> None:
        for _ in range(rounds):
            for pack, confirmation in self._packs:
                observed = ObservedGuest(self._linux, pack.name)
                found = tuple(pack.inspect(observed, self._linux.view.memory))
                changes = confirmation.update(
                    found,
                    complete=not observed.gap_count,
                    at=time.time(),
                    clock=time.monotonic(),
                )
                self.alerts += (one.finding.claim for one in changes.raised)
            self.rounds += 1


@pytest.fixture(scope="module", params=["5.10", "6.1", "7.x", "6.12-arm64"])
def guest(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Guest]:
    name = str(request.param)
    config = aarch64() if name.endswith("-arm64") else GuestConfig(kernel=name)
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(config)


@pytest.mark.timeout(LONGEST_S)
def test_a_guest_that_traces_itself_and_loads_modules_and_programs_raises_no_alert(
    guest: Guest, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    rounds = proof_size(ci=2, full=30)
    with qvmi.attach_sync(guest.qmp, cache=profiles) as machine:
        linux = machine.guest
        assert isinstance(linux, LinuxGuest)
        watched = Watched(linux)
        watched.look(rounds)
        guest.run(MOUNT)
        for phase in PHASES:
            guest.run(TRACING + phase)
            watched.look(rounds)
        for _ in range(rounds):
            guest.ask("load ifb")
            watched.look(1)
            guest.ask("unload ifb")
            watched.look(1)
        for request in ("exotic", "bpf filter", "bpf counter"):
            with suppress(GuestRefused):  # a kernel that has no such programs
                guest.ask(request)
            watched.look(rounds)
    assert watched.alerts == []
    proof_count(watched.rounds)


@pytest.mark.timeout(LONGEST_S)
@pytest.mark.parametrize("guest", ["7.x"], indirect=True)
@asynchronous
async def test_all_see_a_guest_that_runs_and_tell_what_it_does_to_itself(
    guest: Guest, profiles: Path
) -> None:
    async with (
        qvmi.attach(guest.qmp, cache=profiles) as machine,
        watch(machine, packs=[make() for make in PACKS], vm="guest") as documents,
    ):
        seen: set[str] = set()
        async with asyncio.timeout(WAIT_S):
            while len(seen) < len(PACKS):
                message = await anext(documents)
                assert message.kind == "status", message
                if message.read_body(Status).sight is Sight.FULL:
                    seen.add(message.codepack)
        for program, kind in (("/home/u/x", "alert"), ("/nothing", "cleared")):
            guest.run(f"echo {program} > /proc/sys/kernel/modprobe")
            async with asyncio.timeout(WAIT_S):
                while (message := await anext(documents)).kind != kind:
                    assert message.kind == "status", message
            assert message.codepack == "kernel-settings"
            assert message.read_body(Alert).finding.evidence[0].facts["value"] == "/home/u/x"
