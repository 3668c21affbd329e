"""No false alarm: all codepacks of qvmi's own, run as `qvmi watch` does, over healthy guests hard at work."""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

import qvmi
from qvmi.codepacks.alert import Alert
from qvmi.codepacks.codepack import Codepack, Finding, Unseen
from qvmi.codepacks.detectors.file_watch import FileWatch
from qvmi.codepacks.manifest import built_in_manifest
from qvmi.codepacks.observed_guest import ObservedGuest
from qvmi.codepacks.status import Sight, Status
from qvmi.manager.watch import Watch, watch
from qvmi.memory.physical import PhysicalMemory
from qvmi.policy import Grant
from qvmi.semantics.guest_os import GuestOS
from tests.asynchronous import asynchronous, until
from tests.built_in_packs import MEMORY_PACKS, made
from tests.guests.aarch64_guests import aarch64
from tests.guests.healthy_guest import (
    BOXES,
    FORKS,
    FUNCTIONS,
    MODULES,
    PROGRAMS,
    TRACING,
    heal,
    let_rest,
    set_to_work,
    steps,
)
from tests.guests.lab import Guest, GuestConfig, Lab
from tests.guests.pool import GuestPool
from tests.proofs import proof_size

KERNELS: Final = ("5.10", "6.1", "6.12", "7.x", "6.12-arm64")
INTERVAL_S: Final = 0.01
"""From one look to the next: with all codepacks in turns, a round follows the other at once."""
SPELLS: Final = (
    (FORKS, BOXES, PROGRAMS),
    (MODULES, TRACING),
    (FUNCTIONS,),
    (FORKS, BOXES, MODULES, TRACING),
)
"""What the guest is busy with, one after the other."""
WAIT_S: Final = 600.0
"""Longest wait for the rounds of one spell; they take some seconds on an idle machine."""
MOST_WITH_GAPS: Final = 0.1
"""Share of the looks that may have missed something; at most one in a hundred does, on a busy host."""
LONGEST_S: Final = 1800
"""Longest test of the smaller size, on a host that lets the guest run at a tenth of its speed."""


@dataclass
class Counted:
    """A codepack, how often it looked to the end, and how often it could not see all.

    Files are searched in each look: here a round does not wait for the next search.
    """

    pack: Codepack
    looks: int = 0
    gaps: int = 0
    where: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        files = getattr(self.pack, "files", None)
        if isinstance(files, FileWatch):
            files.every_s = 0.0

    @property
    def name(self) -> str:
        return self.pack.name

    @property
    def interval_s(self) -> float:
        return self.pack.interval_s

    @property
    def grants(self) -> frozenset[Grant]:
        return self.pack.grants

    def inspect(self, guest: GuestOS, memory: PhysicalMemory) -> Iterable[Finding | Unseen]:
        yield from self.pack.inspect(guest, memory)
        assert isinstance(guest, ObservedGuest)
        self.looks += 1
        self.gaps += guest.gap_count > 0
        self.where.update({gap.structure for gap in guest.gaps})


@dataclass
class Rounds:
    """All codepacks over one guest, and what they said of it."""

    packs: Sequence[Counted]
    documents: Watch
    alerts: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return min(pack.looks for pack in self.packs)

    async def listen(self) -> None:
        async for message in self.documents:
            if message.kind == "status":
                status = message.read_body(Status)
                assert status.sight is not Sight.FAILED, message
            else:
                claim = message.read_body(Alert).finding.claim
                self.alerts.append(f"{message.kind} {message.codepack}: {claim}")

    @property
    def looks(self) -> int:
        return sum(pack.looks for pack in self.packs)

    @property
    def with_gaps(self) -> int:
        return sum(pack.gaps for pack in self.packs)

    def told(self) -> str:
        """These are the rounds and the gaps, in words."""
        where = {pack.name: dict(pack.where) for pack in self.packs if pack.where}
        return f"{self.count} rounds, {self.looks} looks, {self.with_gaps} with gaps: {where or 'none'}"


@asynccontextmanager
async def rounds_over(guest: Guest, profiles: Path) -> AsyncIterator[Rounds]:
    """This runs all codepacks for the length of the block; an error of listening ends it."""
    packs = [Counted(made(name, INTERVAL_S)) for name in MEMORY_PACKS]
    management = {name: built_in_manifest(name).management for name in MEMORY_PACKS}
    async with (
        qvmi.attach(guest.qmp, cache=profiles) as machine,
        watch(machine, packs=packs, vm="guest", management=management) as documents,
        asyncio.TaskGroup() as group,
    ):
        rounds = Rounds(packs, documents)
        listening = group.create_task(rounds.listen())
        yield rounds
        listening.cancel()


@pytest.fixture(scope="module", params=KERNELS)
def guest(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Guest]:
    name = str(request.param)
    config = aarch64() if name.endswith("-arm64") else GuestConfig(kernel=name)
    with ExitStack() as stack:
        yield GuestPool(lab, stack).restore(config)


async def looked_at_work(rounds: Rounds, guest: Guest, loads: Sequence[str], more: int) -> None:
    """This lets all look so many times more, and until the guest has done something of each of its loads."""
    enough = rounds.count + more
    before = await asyncio.to_thread(steps, guest, loads)
    await asyncio.to_thread(set_to_work, guest, loads)
    async with asyncio.timeout(WAIT_S):
        await until(lambda: rounds.count >= enough, within_s=WAIT_S)
        while True:
            now = await asyncio.to_thread(steps, guest, loads)
            if all(after > at_first for after, at_first in zip(now, before, strict=True)):
                break
    await asyncio.to_thread(let_rest, guest, loads)


@pytest.mark.timeout(LONGEST_S)
@asynchronous
async def test_a_healthy_guest_raises_no_alert_whatever_it_is_busy_with(
    guest: Guest,
    profiles: Path,
    proof_count: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    each = proof_size(ci=10, full=100)
    await asyncio.to_thread(heal, guest)
    async with rounds_over(guest, profiles) as rounds:
        for loads in SPELLS:
            await looked_at_work(rounds, guest, loads, each)
            assert rounds.alerts == [], loads
        told, count = rounds.told(), rounds.count
        assert rounds.with_gaps <= MOST_WITH_GAPS * rounds.looks, told
        await asyncio.to_thread(guest.run, "echo /home/u/x >/proc/sys/kernel/modprobe")
        await until(lambda: len(rounds.alerts) > 0, within_s=WAIT_S)
        await asyncio.to_thread(guest.run, "echo /nothing >/proc/sys/kernel/modprobe")
        await until(lambda: len(rounds.alerts) > 1, within_s=WAIT_S)
    assert [one.partition(":")[0] for one in rounds.alerts] == [
        "alert kernel-settings",
        "cleared kernel-settings",
    ]
    with capsys.disabled():
        sys.stdout.write(f"\n{guest.config.kernel}: {told}\n")
    proof_count(count)
